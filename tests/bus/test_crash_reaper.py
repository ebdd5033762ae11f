"""What a crash leaves, and for how long: its output, its place in the heartbeat, its disk (dea-bus.md 2.10)."""

from __future__ import annotations

import pytest
from bad_input_kit import SMALL, exit_of, output_of
from conftest import OpenHost
from driver import App, Host, poll

pytestmark = pytest.mark.bus


async def crash(host: Host, app: App, words: str) -> str:
    """An instance that says ``words`` and ends; its id."""
    since = host.peer.mark
    await host.start(app, limits=SMALL, start_command=f"echo {words}; exit 1")
    return str((await exit_of(host, app, since=since))["instance"])


async def test_of_each_app_the_newest_crash_is_kept_for_its_time_and_holds_its_disk(hosts: OpenHost) -> None:
    """Older ones and strangers' directories go at the next round; a stop does not take a crash away, time does."""
    async with hosts(crash_lifetime_secs=18) as host:
        await host.start_agent()
        crashes = host.base_dir / "crashes"
        free = await host.status()
        shop, other = host.make_app("shop"), host.make_app("other")
        old, new = await crash(host, shop, "first"), await crash(host, shop, "second")
        only = await crash(host, other, "third")
        (crashes / "stranger").mkdir()
        held = await host.status()
        await host.stop(shop)  # skipped: it has crashed (dea-bus.md 1.5)

        kept = {new, only}
        assert old != new
        assert held["memory_left_mb"] == free["memory_left_mb"]
        assert held["disk_left_mb"] == free["disk_left_mb"] - 3 * SMALL["disk"]
        assert await poll(lambda: {path.name for path in crashes.iterdir()} == kept, 15)
        assert [one["instance"] for one in await host.find(shop, states=["CRASHED"])] == [new]
        assert "second\n" in await output_of(host, shop)

        assert await poll(lambda: not list(crashes.iterdir()), 40)
        assert await host.find(shop) + await host.find(other) == []
        assert (await host.status())["disk_left_mb"] == free["disk_left_mb"]
