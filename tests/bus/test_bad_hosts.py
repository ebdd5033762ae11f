"""A host whose disk is at the low-water mark, or whose bus is away: apps run on, and nothing is lost or left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bad_input_kit import SMALL, exit_of, half_made_layers, output_of, told, wait_output, words_about
from conftest import OpenHost
from driver import Host, poll
from driver_apps import make_droplet
from driver_peer import Peer
from servers import NatsServer, nats_server

pytestmark = pytest.mark.bus
LOW_WATER_MB = 400
WRITE_ON = "while head -c 65536 /dev/zero >> ../more; do echo wrote; sleep 0.1; done"


@contextlib.contextmanager
def small_disk(place: Path, size_mb: int) -> Iterator[None]:
    """A file system of its own at ``place``."""
    image = place.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(size_mb << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)
        image.unlink()


def fill(place: Path, leave_mb: int) -> Path:
    """Take the free space of a file system but for ``leave_mb``."""
    seen = os.statvfs(place)
    ballast = place / "ballast"
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, seen.f_bavail * seen.f_frsize - (leave_mb << 20))
    finally:
        os.close(fd)
    return ballast


async def test_at_the_low_water_mark_nothing_new_starts_and_what_runs_writes_on(
    hosts: OpenHost, base_dir: Path
) -> None:
    """New starts are refused for want of disk and adverts stop; with room again both come back."""
    with small_disk(base_dir / "agent", 3072):
        async with hosts(
            resources={"low_water_mb": LOW_WATER_MB}, intervals={"advertise": 0.2, "heartbeat": 1}
        ) as host:
            await host.start_agent()
            runs, late = host.make_app("runs"), host.make_app("late")
            await host.run(runs, start_command=f"./listener & {WRITE_ON}", limits=SMALL)

            ballast = fill(host.base_dir, LOW_WATER_MB - 50)
            await host.peer.wait_for("dea.heartbeat", since=host.peer.mark)  # what was said before has come
            since = host.peer.mark
            await host.start(late, limits=SMALL)
            refused = await exit_of(host, late, since=since)
            line = await host.running.wait_log("start_refused", app=late.id)
            written = len(await output_of(host, runs))
            await wait_output(host, runs, "wrote\n" * (written // len("wrote\n") + 10))
            await host.peer.wait_for("dea.heartbeat", since=host.peer.mark)

            assert told(refused) == ("Not enough disk resource available.", -1)
            assert (line["short"], line["low_water"]) == ("disk", True)
            assert not {"dea.advertise", "staging.advertise"} & set(host.peer.subjects(since))
            assert words_about(host, runs, since) == []

            ballast.unlink()
            await host.peer.wait_for("dea.advertise", since=host.peer.mark)
            await host.run(late, 1, limits=SMALL)


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    """While inside, nothing can be written below ``place``, a mount of its own."""
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,bind,rw", place], check=True)


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[None]:
    place.mkdir()
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


async def test_a_host_that_cannot_write_refuses_starts_and_reports_it(
    hosts: OpenHost, base_dir: Path
) -> None:
    """Adverts stop, heartbeats go on, a start is refused; writable again, all is as before. An agent that begins says what is
    wrong in a line."""
    with mounted(base_dir / "agent"):
        async with hosts(intervals={"advertise": 0.2, "heartbeat": 0.5}) as host:
            await host.start_agent()
            app = host.make_app("shop")

            with read_only(base_dir / "agent"):
                line = await host.running.wait_log("base_dir_not_writable")
                since = host.peer.mark
                await host.start(app, limits=SMALL)
                refused = await exit_of(host, app, since=since)
                await host.peer.wait_for("dea.heartbeat", since=host.peer.mark)

                assert line["error"] == "Read-only file system"
                assert told(refused) == ("Not enough disk resource available.", -1)
                assert not {"dea.advertise", "staging.advertise"} & set(host.peer.subjects(since))

            await host.peer.wait_for("dea.advertise", since=host.peer.mark)
            await host.run(app, limits=SMALL)
            assert await host.stop_agent() == 0

            with read_only(base_dir / "agent"):
                agent = await host._spawn_agent("")
                assert await agent.wait_exited() == 1
            words = (host.dir / "agent.out").read_text()
            assert f"base_dir {base_dir / 'agent'}: cannot be written: Read-only file system" in words
            assert "Traceback" not in words + agent.log_text()


async def test_droplets_that_do_not_come_hold_up_no_other_start(hosts: OpenHost) -> None:
    """One app with more instances than there are starts at once, and one with many droplets; what waits is in the heartbeat."""
    async with hosts(
        starts={"concurrent": 2}, downloads={"concurrent": 4}, intervals={"heartbeat": 0.5}
    ) as host:
        await host.start_agent()
        cached, fresh, slow = (host.make_app(name) for name in ("cached", "fresh", "slow"))
        await host.run(cached, limits=SMALL)
        versions = [
            replace(slow, droplet=make_droplet(host.listener, f"slow-{number}"), path=f"/slow/{number}")
            for number in range(6)
        ]
        with contextlib.ExitStack() as stalls:
            for number, one in enumerate(versions):
                host.files.put(one.path, one.droplet.data)
                reached = stalls.enter_context(host.files.stalled(one.path))
                await host.start(one, number, limits=SMALL)
                await host.start(one, 10 + number, limits=SMALL)
                if number < 2:  # half of four: that is all that one app gets
                    await asyncio.wait_for(reached.wait(), 20)

            await host.run(cached, 1, limits=SMALL)
            await host.run(fresh, limits=SMALL)

            told_of = await host.peer.wait_for(
                "dea.heartbeat",
                lambda body: sum(one["droplet"] == slow.id for one in body["droplets"]) == 12,
            )
            states = {one["state"] for one in told_of.body["droplets"] if one["droplet"] == slow.id}
            assert states == {"STARTING"}
            assert len([path for path in host.files.asked if path.startswith("/slow/")]) == 2
            await host.stop(slow)
            await host.wait_gone(slow)


@dataclass
class Bus:
    """The host's only bus, killed and started again at the same port; the peer is as new as the server."""

    host: Host
    server: NatsServer

    async def kill(self) -> None:
        lost = len(self.host.running.log("bus_disconnected"))
        await self.host.peer.close()
        await self.server.kill()
        assert await poll(lambda: len(self.host.running.log("bus_disconnected")) > lost, 20)

    async def start(self) -> None:
        await self.server.start()
        self.host.peer = await Peer.open(self.server.port, "", "")
        await self.host.peer.wait_for("dea.heartbeat")


async def test_a_bus_that_goes_before_during_and_after_a_start_loses_nothing_of_it(
    hosts: OpenHost, base_dir: Path
) -> None:
    """The start goes on without a bus; what happened meanwhile is told when it is back, an exit once."""
    async with nats_server(base_dir / "bus") as server, hosts(nats={"servers": [server.url]}) as host:
        host.peer = await Peer.open(server.port, "", "")
        await host.start_agent()
        bus, app = Bus(host, server), host.make_app("shop")
        await bus.kill()
        await bus.start()

        with host.files.stalled(app.path) as reached:
            await host.start(app, limits=SMALL)
            await reached.wait()
            await bus.kill()
        ran = await host.running.wait_log("instance_running", app=app.id)
        await bus.start()
        await host.peer.wait_for("router.register", lambda body: body["port"] == ran["port"])
        await bus.kill()
        await host.ask_app(ran["port"], "exit 3")
        await host.running.wait_log("instance_exited", app=app.id)
        await bus.start()

        assert told(await exit_of(host, app)) == ("app instance exited", 3)
        await host.peer.wait_for("dea.heartbeat", since=host.peer.mark)
        words = words_about(host, app)
        assert sorted(set(words)) == ["droplet.exited", "router.unregister"]
        assert words.count("droplet.exited") == 1
        await host.peer.close()


async def test_a_stop_in_the_middle_of_a_start_wins_at_whatever_moment_it_comes(host: Host) -> None:
    """Twenty starts, each stopped a little later than the one before: no exit is told, nothing is left."""
    before, since = host.picture(), host.peer.mark
    apps = [host.make_app(f"app-{number}") for number in range(20)]

    for number, app in enumerate(apps):
        await host.start(app, limits=SMALL)
        await asyncio.sleep(number * 0.02)  # the moment is what varies; nothing is waited for
        await host.stop(app)
    while (await host.status())["instances"]:
        await asyncio.sleep(0.05)

    assert "droplet.exited" not in host.peer.subjects(since)
    assert await host.left_since(before) == []
    assert await half_made_layers(host) == []
