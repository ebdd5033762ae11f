"""What is kept of a crash, and for how long: output, heartbeat entry, reserved disk (docs/protocol.md, "Instance states")."""

from __future__ import annotations

import signal

import pytest
from bad_input_kit import SMALL, exit_of, output_of
from conftest import OpenHost
from driver import App, Host, poll

pytestmark = pytest.mark.bus


async def crash(host: Host, app: App, words: str, index: int = 0) -> str:
    """An instance that says ``words`` and ends; its id."""
    since = host.peer.mark
    await host.start(app, index, limits=SMALL, start_command=f"echo {words}; exit 1")
    return str((await exit_of(host, app, since=since))["instance"])


async def test_the_newest_crash_of_each_index_is_kept_for_its_time_and_holds_what_is_kept(
    hosts: OpenHost,
) -> None:
    """Older ones go at once, strangers' directories at the next round; a stop does not take a crash away, time does."""
    async with hosts() as host:
        await host.start_agent()
        crashes = host.base_dir / "crashes"
        free = await host.status()
        shop, other = host.make_app("shop"), host.make_app("other")
        old, new = await crash(host, shop, "first"), await crash(host, shop, "second")
        second = await crash(host, shop, "of another index", index=1)
        only = await crash(host, other, "third")
        (crashes / "stranger").mkdir()
        await host.wait_depot_empty()
        held = await host.status()
        await host.stop(shop)  # skipped: it has crashed (docs/protocol.md, "Stop message")

        kept = {new, second, only}
        assert old != new
        assert held["memory_left_mb"] == free["memory_left_mb"]
        assert held["disk_left_mb"] == free["disk_left_mb"] - 3  # a few bytes each, counted as one MB
        assert {one["instance"] for one in await host.find(shop, states=["CRASHED"])} == {new, second}
        assert await poll(lambda: {path.name for path in crashes.iterdir()} == kept, 15)
        assert "second\n" in await output_of(host, shop)

        await host.stop_agent(signal.SIGKILL)
        await host.start_agent()
        assert (await host.status())["disk_left_mb"] == held["disk_left_mb"]

        await host.stop_agent(signal.SIGKILL)
        host.settings["crash_lifetime_secs"] = 1  # only now: however slow the machine was so far
        await host.start_agent()
        assert await poll(lambda: not list(crashes.iterdir()), 40)
        assert await host.find(shop) + await host.find(other) == []
        assert (await host.status())["disk_left_mb"] == free["disk_left_mb"]


async def test_a_crash_for_want_of_memory_is_still_there_after_a_later_exit(hosts: OpenHost) -> None:
    """It is the one that its developer looks for."""
    async with hosts() as host:
        await host.start_agent()
        shop = host.make_app("shop")
        since = host.peer.mark
        eats = "head -c 200000000 /dev/zero | tail"
        await host.start(shop, limits=SMALL, start_command=f"echo eats; {eats}")
        oom = await exit_of(host, shop, since=since)
        assert oom["exit_description"] == "out of memory"

        later = await crash(host, shop, "later")

        assert {one["instance"] for one in await host.find(shop)} == {oom["instance"], later}
        assert "eats\n" in (host.base_dir / "crashes" / oom["instance"] / "stdout").read_text()


async def test_a_crash_record_has_the_number_of_bytes_missing_at_its_head(hosts: OpenHost) -> None:
    """Past the limit the oldest output is dropped: how much is told with the crash, as it was while the app ran; also by the
    next agent.
    """
    async with hosts(instance={"output_limit_bytes": 65536}) as host:
        await host.start_agent()
        shop = host.make_app("shop")
        since = host.peer.mark
        await host.start(shop, limits=SMALL, start_command="seq 100000; exit 1")
        crashed = await exit_of(host, shop, since=since)
        said = "".join(f"{number}\n" for number in range(1, 100_001))

        for signal_number in (None, signal.SIGKILL):
            if signal_number is not None:
                await host.stop_agent(signal_number)
                await host.start_agent()
            lines = await host.control_lines(f"/v1/instances/{crashed['instance']}/logs")
            (out,) = [line for line in lines if line["stream"] == "stdout"]
            assert said.endswith(out["data"])
            assert 0 < len(out["data"]) < len(said)
            assert out["gap_bytes"] == len(said) - len(out["data"])
