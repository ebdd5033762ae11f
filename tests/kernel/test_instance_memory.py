"""A kill for memory ended either the app itself or only one of its other processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from depot_kit import app, sh, until
from depot_kit import depot as depot
from depot_kit import stack as stack

from agent.bus.messages import AppLimits, StartMessage
from agent.instances import memory_kills
from agent.instances.instance import Exit, Instance
from agent.instances.life import exit_of
from agent.instances.memory_kills import MemoryKills
from agent.instances.process import WEB, Process
from agent.instances.registry import Registry
from container import Container, Depot, Job, Limits

pytestmark = pytest.mark.kernel

#: busybox dd takes its whole block as a buffer and fills it.
EATS = "dd if=/dev/zero of=/dev/null bs=96M count=1 2>/dev/null"
GOES_ON = f"{EATS}; while [ ! -e /tmp/go ]; do sleep 0.05; done; "
OOM = ("out of memory", 255)


def instance() -> Instance:
    message = StartMessage("app", "v1", "name", 0, AppLimits(48, 64, 64), (), "default")
    return Instance(id="i", private_id="p", message=message, version="v1", uris=())


@asynccontextmanager
async def followed(box: Container, job: Job) -> AsyncIterator[tuple[MemoryKills, Instance]]:
    one = instance()
    registry = Registry()
    kills = MemoryKills(48, box, Process(WEB, job), lambda text: registry.remark(one, 0.0, text))
    watch = asyncio.create_task(kills.watch())
    try:
        yield kills, one
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def end_of(job: Job, kills: MemoryKills) -> tuple[str, int]:
    status = await job.wait()
    told: Exit = exit_of(status, out_of_memory=kills.came_with_the_end())
    return told.description, told.status


async def small(depot: Depot, stack: Path) -> Container:
    return await depot.create(app(stack, limits=Limits(memory_bytes=48 << 20)))


@pytest.mark.parametrize("script", [f"exec {EATS}", f"{EATS}; exit $?", EATS])
async def test_an_app_whose_first_process_is_killed_is_out_of_memory(
    depot: Depot, stack: Path, script: str
) -> None:
    """Also when a shell in between says 137 of its child."""
    box = await small(depot, stack)
    job = await box.spawn(sh(script))
    async with followed(box, job) as (kills, _):
        assert await end_of(job, kills) == OOM


@pytest.mark.parametrize(("end", "expected"), [("exit 3", 3), ("exit 0", 0), ("kill -TERM $$", 255)])
async def test_a_child_that_was_killed_is_an_event_and_not_the_end(
    depot: Depot, stack: Path, end: str, expected: int
) -> None:
    """However the app ends later, that is what is told of it; the kill stands in its log."""
    box = await small(depot, stack)
    job = await box.spawn(sh(GOES_ON + end))
    async with followed(box, job) as (kills, one):
        await until(lambda: len(one.remarks) == 1, lambda: "no remark", 60)
        await box.run(sh("touch /tmp/go"))

        assert await end_of(job, kills) == ("app instance exited", expected)
        assert one.remarks[0][1] == "a process was killed: out of memory (the limit is 48 MiB)"


async def test_a_kill_that_the_app_has_outlived_is_not_its_end(
    depot: Depot, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KILL of another cause, a while after a child's; and a second kill for memory after that is one again."""
    box = await small(depot, stack)
    for script, expected in (("kill -KILL $$", ("app instance exited", 255)), (f"exec {EATS}", OOM)):
        await box.run(sh("rm -f /tmp/go"))
        monkeypatch.setattr(memory_kills, "SETTLE_S", 0.05)
        job = await box.spawn(sh(GOES_ON + script))
        async with followed(box, job) as (kills, one):
            await until(lambda one=one: len(one.remarks) == 1, lambda: "no remark", 60)  # type: ignore[misc]
            await until(lambda kills=kills: not kills.came_with_the_end(), lambda: "not outlived", 60)  # type: ignore[misc]
            monkeypatch.setattr(memory_kills, "SETTLE_S", 60.0)  # whatever the pace of the machine
            await box.run(sh("touch /tmp/go"))
            assert await end_of(job, kills) == expected


async def test_what_a_former_agent_saw_is_outlived_too(
    depot: Depot, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app still runs when it is taken over: the kills so far were others'. Nothing is said of them again."""
    monkeypatch.setattr(memory_kills, "SETTLE_S", 0.05)
    box = await small(depot, stack)
    job = await box.spawn(sh(GOES_ON + "kill -KILL $$"))
    await until(lambda: box.events.kinds == ("out of memory",), lambda: "nothing was killed", 60)

    async with followed(box, job) as (kills, one):
        await until(lambda: not kills.came_with_the_end(), lambda: "not outlived", 60)
        await box.run(sh("touch /tmp/go"))
        assert await end_of(job, kills) == ("app instance exited", 255)
        assert one.remarks == []


async def test_a_container_that_is_gone_has_had_no_kill(depot: Depot, stack: Path) -> None:
    """What cannot be measured is no cause."""
    box = await small(depot, stack)
    job = await box.spawn(sh("exec sleep 1000"))
    async with followed(box, job) as (kills, _):
        await depot.destroy(box.handle)
        assert not kills.came_with_the_end()
