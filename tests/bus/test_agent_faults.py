"""Neither an internal error nor a signal that arrives too early or too late ends the agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bad_input_kit import SMALL
from conftest import OpenHost
from driver import Host, poll
from held_agent import FAULTS
from staging_kit import Desk

pytestmark = pytest.mark.bus


@contextlib.contextmanager
def broken(host: Host, *kinds: str):  # type: ignore[no-untyped-def]
    """While inside, work of these kinds raises. The flag is renamed into place: it is never there half-written."""
    beside = host.hold_flag.with_suffix(".new")
    beside.write_text(" ".join(kinds))
    beside.rename(host.hold_flag)
    try:
        yield
    finally:
        host.hold_flag.unlink()


async def fails(host: Host, kind: str) -> None:
    """Until it has been tried; in the log, and counted."""
    await host.running.wait_log("task_failed", task=kind)
    assert (await host.status())["failures"][kind] >= 1


PERIODIC = ("stats", "reaper", "advertise", "heartbeat", "routes", "memory", "bus")


async def test_each_kind_of_background_work_may_raise_and_goes_on_afterwards(hosts: OpenHost) -> None:
    """An error costs its round; the agent stays, the app too, and what failed does its work again."""
    intervals = {"heartbeat": 0.2, "advertise": 0.2, "router_register_in_seconds": 1, "stats": 0.2}
    async with hosts(intervals=intervals) as host:
        await host.start_agent(hold="faulty")
        app = host.make_app("shop")
        running = await host.run(app)

        with broken(host, *PERIODIC):
            await host.control("GET", "/v1/status")
            # the memory and the sender have work only when something changes
            await host.peer.say("dea.update", {"droplet": app.id, "uris": ["new.example.com"]})
            for kind in PERIODIC:
                await fails(host, kind)

        since = host.peer.mark
        for subject in ("dea.advertise", "dea.heartbeat", "router.register"):
            await host.peer.wait_for(subject, since=since)
        await host.wait_remembered("new.example.com")
        assert (await host.find(app))[0]["instance"] == running["instance"]
        assert "PORT" in await host.environment_of(running["stats"]["port"])
        assert set(PERIODIC) == set(FAULTS) - {"life", "staging", "destroy"}, "each kind has its test"


async def test_an_error_in_one_life_costs_that_instance_only(hosts: OpenHost) -> None:
    """It is told as a failed start, holds nothing, and the next start of the app is none the worse."""
    async with hosts() as host:
        await host.start_agent(hold="faulty")
        before = await host.status()
        app, desk = host.make_app("shop"), Desk(host)

        with broken(host, "life", "staging"):
            await host.start(app, limits=SMALL)
            exited = await host.peer.wait_for("droplet.exited")
            await fails(host, "life")
            await desk.stage()
            await fails(host, "staging")

        assert exited.body["droplet"] == app.id
        assert (exited.body["exit_status"], exited.body["exit_description"]) == (-1, "failed to start")
        await host.run(app, limits=SMALL)
        assert (await host.status())["memory_left_mb"] <= before["memory_left_mb"] - SMALL["mem"]


async def test_a_container_that_cannot_be_destroyed_costs_nobody_else(hosts: OpenHost) -> None:
    """One without an owner, at a start of the agent: the app of another is taken over, the agent stays."""
    async with hosts() as host:
        await host.start_agent()
        kept, lost = host.make_app("kept"), host.make_app("lost")
        await host.run(kept)
        await host.run(lost)
        await host.wait_remembered(lost.id)
        await host.stop_agent(signal.SIGKILL)
        for path in (*host.base_dir.glob("db/instances/*.json"), *host.base_dir.glob("depot/*/record")):
            if json.loads(path.read_text())["message"]["droplet"] == lost.id:
                path.unlink()

        with broken(host, "destroy"):
            await host.start_agent(hold="faulty")
            await fails(host, "destroy")

        assert [one["state"] for one in await host.find(kept)] == ["RUNNING"]


async def test_an_app_that_cannot_be_measured_is_taken_over_all_the_same(hosts: OpenHost) -> None:
    """One measurement that fails ends no start of the agent."""
    async with hosts() as host:
        await host.start_agent()
        app = host.make_app("shop")
        running = await host.run(app, limits=SMALL)
        await host.wait_remembered('"RUNNING"')
        await host.stop_agent(signal.SIGKILL)

        with broken(host, "stats", "advertise"):
            await host._spawn_agent("faulty")
            since = host.peer.mark
            # what is said after each connect: an error in one neither ends the connection nor keeps the others back
            await host.peer.wait_for("router.register", since=since)
            await host.running.wait_log("task_failed", task="stats")
            await host.running.wait_log("task_failed", task="advertise")
            assert not host.running.log("task_failed", task="bus")

        assert [(one["instance"], one["state"]) for one in await host.find(app)] == [
            (running["instance"], "RUNNING")
        ]


async def test_an_app_whose_pid_1_does_not_reply_is_published_as_a_crash(host: Host) -> None:
    """Half a minute of silence is enough; its neighbour runs on, a stop of it does not wait for ever."""
    silent, stopped, other = (host.make_app(name) for name in ("silent", "stopped", "other"))
    for app in (silent, stopped, other):
        await host.run(app, limits=SMALL)
    handles = {one["app"]: one["handle"] for one in await host.control("GET", "/v1/instances")}
    for app in (silent, stopped):
        os.kill(host.pid_of_container(handles[app.id]), signal.SIGSTOP)

    await host.stop(stopped)
    await host.wait_gone(stopped)
    exited = await host.peer.wait_for("droplet.exited", within_s=120)

    assert exited.body["droplet"] == silent.id
    assert (exited.body["exit_status"], exited.body["exit_description"]) == (-1, "unknown")
    assert host.running.log("container_silent_killed", handle=handles[silent.id])
    assert [one["state"] for one in await host.find(other)] == ["RUNNING"]


# -- signals ---------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def starting(host: Host, after_s: float, number: signal.Signals) -> AsyncIterator[None]:
    """An agent that gets a signal a moment after its process has begun to be Python."""
    await host._spawn_agent("")
    pid = host.running.pid
    # the program's first line blocks them: from then on none is lost
    await poll(lambda: blocked(pid), 20)
    await asyncio.sleep(after_s)
    os.kill(pid, number)
    yield


def blocked(pid: int) -> bool:
    """Does it block TERM, or has it a handler by now?"""
    text = Path(f"/proc/{pid}/status").read_text()
    masks = {
        line.split(":")[0]: int(line.split()[1], 16)
        for line in text.splitlines()
        if line[:3] == "Sig" and line[3] != "Q"
    }
    bit = 1 << (signal.SIGUSR2 - 1)
    return bool((masks["SigBlk"] | masks["SigCgt"]) & bit)


MOMENTS_S = (0.0, 0.4)  # before the imports, and in the middle of them


@pytest.mark.parametrize("after_s", MOMENTS_S)
async def test_a_term_in_the_first_second_stops_the_apps_as_any_other(
    hosts: OpenHost, after_s: float
) -> None:
    """Those of the former agent too; nothing is left and the status is 0."""
    async with hosts() as host:
        bare = host.picture()
        await host.start_agent()
        await host.run(host.make_app("shop"))
        await host.stop_agent(signal.SIGKILL)

        async with starting(host, after_s, signal.SIGTERM):
            assert await host.running.wait_exited() == 0

        assert await host.left_since(bare) == []


@pytest.mark.parametrize("after_s", MOMENTS_S)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
async def test_an_early_signal_is_carried_out(
    hosts: OpenHost, number: signal.Signals, after_s: float
) -> None:
    """USR1 leaves the pool, USR2 evacuates, HUP opens the log anew; the app runs on."""
    async with hosts() as host:
        await host.start_agent()
        app = host.make_app("shop")
        running = await host.run(app)
        await host.stop_agent(signal.SIGKILL)
        since = host.peer.mark

        async with starting(host, after_s, number):
            await host.running.wait_log("agent_started")
            if number is signal.SIGHUP:
                await host.peer.wait_for("dea.advertise", since=since)
            else:
                await host.peer.wait_for("dea.shutdown", since=since)

        assert "PORT" in await host.environment_of(running["stats"]["port"])
        if number is signal.SIGUSR2:
            assert (await host.status())["evacuating"]
            await host.stop(app)  # an evacuation ends when everything is gone
            assert await host.running.wait_exited() == 0


async def test_a_hang_up_opens_the_log_anew(host: Host) -> None:
    """After a rotation the lines go into the new file; the old one tells of it last."""
    log = Path(host.settings["logging"]["file"])
    old = log.with_suffix(".1")
    log.rename(old)

    host.running.signal(signal.SIGHUP)

    assert await poll(lambda: log.exists() and b"log_reopened" in log.read_bytes(), 20)
    assert json.loads(old.read_bytes().splitlines()[-1])["event"] == "log_reopening"
    app = host.make_app("shop")
    await host.run(app)
    assert app.id.encode() in log.read_bytes()
    assert app.id.encode() not in old.read_bytes()
    assert log.stat().st_mode & 0o777 == 0o600
