"""No request blocks the event loop: peers take a host that sends nothing for some seconds for dead."""

from __future__ import annotations

import time

import pytest
from bad_input_kit import SMALL
from conftest import OpenHost
from driver import Host
from loop_kit import no_standstill
from staging_kit import Desk, buildpack

pytestmark = pytest.mark.bus


async def exits(host: Host, count: int, since: int, within_s: float = 180.0) -> None:
    """Until so many exits were published."""
    await host.peer.until(lambda: len(host.peer.on("droplet.exited", since)) >= count, within_s)
    assert len(host.peer.on("droplet.exited", since)) == count, host.running.log_text()


async def test_three_hundred_refused_starts_in_one_burst(host: Host) -> None:
    """Each is an event on disk; together they were two seconds of silence."""
    apps = [host.make_app(f"big-{number}") for number in range(300)]
    since = host.peer.mark
    async with no_standstill(host):
        await host.peer.burst([host.start_word(app, limits={"mem": 1 << 20}) for app in apps])
        await exits(host, 300, since)


async def test_more_failing_starts_than_a_host_can_take(hosts: OpenHost) -> None:
    """A controller gone wild: heartbeats go on, and of each index one crash is kept."""
    async with hosts(intervals={"heartbeat": 0.5}) as host:
        await host.start_agent()
        apps = [host.make_app(f"app-{number}") for number in range(30)]
        since = host.peer.mark
        began_s = time.monotonic()
        async with no_standstill(host):
            for _ in range(15):
                await host.peer.burst(
                    [
                        host.start_word(app, index, limits=SMALL, stack="none")
                        for app in apps
                        for index in range(3)
                    ]
                )
            await exits(host, 15 * 30 * 3, since)
        due = (time.monotonic() - began_s) / 0.5
        assert len(host.peer.on("dea.heartbeat", since)) >= due / 2  # a fast machine is done after three
        assert len(await host.control("GET", "/v1/instances")) == 30 * 3


async def test_a_buildpack_that_prints_without_end(host: Host) -> None:
    """Its release is looked at in a thread, and only if it is short."""
    desk = Desk(host)
    async with no_standstill(host):
        wild = await desk.stage(desk.pack("wild", buildpack(release="yes 'a: b' | head -c 9000000")))
        long = "{ echo 'default_process_types: {web: x}'; yes 'a: b' | head -c 64000; }"
        longest = await desk.stage(desk.pack("longest", buildpack(release=long)))
        assert (await wild.reply(2))["error"] is not None
        await longest.reply(2)
