"""The output of an app's instances as one source."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from depot_in_memory import MemoryJob

from agent.bus.messages import AppLimits, StartMessage
from agent.instances import crashes
from agent.instances.instance import Exit, Instance, State
from agent.instances.output import AppOutput
from agent.instances.process import WEB, Process
from agent.instances.registry import Registry
from agent.output import OutputChunk
from container import ExitStatus

pytestmark = pytest.mark.unit
NOW_S = 1000.0


def instance(registry: Registry, index: int = 0) -> tuple[Instance, MemoryJob]:
    message = StartMessage("app", "v", "name", index, AppLimits(16, 32, 64), (), "default")
    one = Instance(id=f"i{index}", private_id="p", message=message, version="v", uris=(), state=State.RUNNING)
    job = MemoryJob()
    registry.add(one)
    registry.has_process(one, Process(WEB, job))
    return one, job


def source(registry: Registry, crashes_dir: Path) -> AppOutput:
    return AppOutput(lambda: registry.of_app("app"), registry, crashes_dir, lambda: NOW_S)


async def test_what_was_there_has_no_time_and_what_follows_has(tmp_path: Path) -> None:
    """Each chunk says where in its stream it begins, and whose it is."""
    registry, got = Registry(), list[OutputChunk]()
    _, job = instance(registry)
    await job.write(b"before\n")

    async def take(chunk: OutputChunk) -> None:
        got.append(chunk)

    reading = asyncio.create_task(source(registry, tmp_path).read(take, follow=True))
    while len(got) < 1:
        await asyncio.sleep(0)
    await job.write(b"after\n")
    while len(got) < 2:
        await asyncio.sleep(0)
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    assert got == [
        OutputChunk("stdout", b"before\n", None, 0, 0, "i0", 0),
        OutputChunk("stdout", b"after\n", NOW_S, 7, 0, "i0", 0),
    ]


async def test_a_crash_is_read_from_what_is_kept_and_ends_with_its_cause(tmp_path: Path) -> None:
    """Its container is gone; the agent's own lines come after the app's."""
    registry, got = Registry(), list[OutputChunk]()
    one, job = instance(registry)
    await job.write(b"last words\n", "stderr")
    await job.end(ExitStatus(code=3))
    await crashes.keep(job, tmp_path / one.id)
    registry.remark(one, 5.0, "a process was killed")
    one.state, one.exit, one.crashed_at_s = State.CRASHED, Exit(3, "app instance exited"), 7

    async def take(chunk: OutputChunk) -> None:
        got.append(chunk)

    await source(registry, tmp_path).read(take, follow=False)
    assert [(chunk.stream, chunk.data, chunk.at_s) for chunk in got] == [
        ("stderr", b"last words\n", None),
        ("sys", b"a process was killed\n", 5.0),
        ("sys", b"app instance exited, exit status 3\n", 7.0),
    ]


async def test_an_error_of_the_reader_ends_the_reading_of_all_instances(tmp_path: Path) -> None:
    """It is raised as it is; nothing goes on reading."""
    registry = Registry()
    for index in range(2):
        _, job = instance(registry, index)
        await job.write(b"x")
    before = asyncio.all_tasks()

    async def take(chunk: OutputChunk) -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        await source(registry, tmp_path).read(take, follow=True)
    assert asyncio.all_tasks() == before
