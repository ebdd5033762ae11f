"""Failures while a container is made or removed: a rung that fails, a caller that is cancelled, a manager that is killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from depot_kit import (
    SCALE,
    app,
    close_empty,
    leases_in_use,
    links,
    nothing_left,
    remains,
    settings_for,
    sh,
    until,
)
from depot_kit import (
    stack as stack,
)

from container import CreateError, Depot, Limits
from container.cgroups import CgroupSet
from container.create import RUNGS

pytestmark = pytest.mark.kernel
MANAGER = Path(__file__).with_name("depot_manager.py")


class Faults:
    """Breaks the rung that is named."""

    def __init__(self) -> None:
        self.rung = ""

    def __call__(self, rung: str) -> None:
        if rung == self.rung:
            raise OSError(28, f"broken on purpose at {rung}")


@asynccontextmanager
async def opened(base: Path, **changes: object) -> AsyncIterator[tuple[Depot, Faults]]:
    faults = Faults()
    depot = await Depot.open(settings_for(base, **changes), fault=faults)
    try:
        yield depot, faults
    finally:
        faults.rung = ""
        await close_empty(depot)


@pytest.mark.parametrize("rung", [rung.name for rung in RUNGS])
async def test_a_broken_rung_leaves_nothing(rung: str, tmp_path: Path, stack: Path) -> None:
    """The error names the rung, everything below it is given back, and the next create works."""
    async with opened(tmp_path) as (depot, faults):
        faults.rung = rung
        with pytest.raises(CreateError, match=rung) as broken:
            await depot.create(app(stack, handle="x"))

        assert broken.value.rung == rung
        await nothing_left(depot.settings)
        await until(lambda: leases_in_use(depot) == 0, lambda: "leases left")
        faults.rung = ""
        await depot.create(app(stack, handle="x"))


async def test_a_watch_that_is_refused_leaves_nothing(
    tmp_path: Path, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last piece of a container, as by the host's limit of inotify instances: what is below it is given back."""

    def refused(*_: object) -> None:
        raise OSError(24, "Too many open files")

    async with opened(tmp_path) as (depot, _):
        with monkeypatch.context() as broken:
            broken.setattr(CgroupSet, "watch_oom", refused)
            with pytest.raises(CreateError, match="Too many open files"):
                await depot.create(app(stack, handle="x"))
        await nothing_left(depot.settings)
        await until(lambda: leases_in_use(depot) == 0, lambda: "leases left")
        await depot.create(app(stack, handle="x"))


async def test_an_open_that_fails_can_be_tried_again(tmp_path: Path) -> None:
    """The lock and the network's descriptors are given back."""
    with pytest.raises(FileNotFoundError):
        await Depot.open(settings_for(tmp_path, wshd_binary=tmp_path / "absent"))
    async with opened(tmp_path) as (depot, _):
        assert depot.handles() == ()


async def test_wshd_s_own_word_is_told(tmp_path: Path, stack: Path) -> None:
    """A layer that is not there: what, where, why."""
    async with opened(tmp_path) as (depot, _):
        with pytest.raises(CreateError, match="no-such-layer") as broken:
            await depot.create(app(stack, layers=(tmp_path / "no-such-layer",)))
        assert broken.value.rung == "launch"
        await nothing_left(depot.settings)


async def test_a_caller_that_goes_away_leaves_nothing(tmp_path: Path, stack: Path) -> None:
    """Cancelled at many moments of a create."""
    async with opened(tmp_path) as (depot, _):
        for step in range(30):
            task = asyncio.create_task(depot.create(app(stack, handle="x")))
            await asyncio.sleep(step * 0.0005)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(result, BaseException):
                await depot.destroy("x")
            assert depot.handles() == ()
        await nothing_left(depot.settings)
        await until(lambda: leases_in_use(depot) == 0, lambda: "leases left")


async def test_a_destroy_whose_caller_goes_away_is_carried_out(tmp_path: Path, stack: Path) -> None:
    """Shielded; two at once are one."""
    async with opened(tmp_path) as (depot, _):
        await depot.create(app(stack, handle="x"))
        first, second = (asyncio.create_task(depot.destroy("x")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert first.cancelled()
        assert depot.handles() == ()
        await nothing_left(depot.settings)


def manager(base: Path, stack: Path, mode: str) -> subprocess.Popen[str]:
    parent = f"garrison-test-{os.getpid()}"
    argv = [sys.executable, str(MANAGER), str(base), str(stack), mode, parent]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


async def test_containers_outlive_their_manager(tmp_path: Path, stack: Path) -> None:
    """Found again with their jobs, output from the first byte, ports, leases; and new jobs run."""
    kill(await asyncio.to_thread(manager, tmp_path, stack, "keep"))
    async with opened(tmp_path) as (depot, _):
        recovery = await depot.recover()

        assert recovery.found == ("one", "two")
        assert recovery.removed == ()
        assert leases_in_use(depot) == 4
        for handle in recovery.found:
            box = depot.find(handle)
            assert box.properties == {"n": handle}
            assert len(box.ports) == 1
            assert (await box.jobs["done"].wait()).code == 5
            assert await box.jobs["done"].output("stdout") == b"early\n"
            job = box.jobs["open"]
            assert job.status is None
            await box.run(sh("touch /tmp/go"))
            assert b"".join([chunk.data async for chunk in job.stream("stdout")]) == b"begun\nended\n"
            assert (await job.wait()).code == 0
            assert await box.read_file("/tmp/go", 10) == b""
        await depot.create(app(stack, handle="three"))
        assert len({box.address for box in map(depot.find, depot.handles())}) == 3
        for handle in depot.handles():
            await depot.destroy(handle)
        await nothing_left(depot.settings)


async def test_a_container_that_died_meanwhile_is_removed_whole(tmp_path: Path, stack: Path) -> None:
    """And so is a directory without a snapshot, or with a strange one."""
    process = await asyncio.to_thread(manager, tmp_path, stack, "keep")
    kill(process)
    settings = settings_for(tmp_path)
    (settings.depot_dir / "empty").mkdir()
    (settings.depot_dir / "strange").mkdir()
    (settings.depot_dir / "strange" / "snapshot.json").write_text('{"version": "none"}')
    from container import snapshot

    os.kill(snapshot.read(settings.depot_dir / "two").pid, signal.SIGKILL)
    async with opened(tmp_path) as (depot, _):
        recovery = await depot.recover()
        assert recovery.found == ("one",)
        assert recovery.removed == ("empty", "strange", "two")
        await depot.destroy("one")
        await nothing_left(depot.settings)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_managers_killed_at_random_moments(tmp_path: Path, stack: Path) -> None:
    """Whatever they were doing: the next one finds containers that work, or nothing at all."""
    seed = 20261124
    print(f"seed {seed}")
    moments = random.Random(seed)
    for _ in range(30 * SCALE):
        process = await asyncio.to_thread(manager, tmp_path, stack, "churn")
        await asyncio.sleep(moments.uniform(0, 0.15))
        kill(process)
        async with opened(tmp_path) as (depot, _):
            recovery = await depot.recover()
            for handle in recovery.found:
                assert (await depot.find(handle).run(sh("echo works"))).stdout == b"works\n"
            assert {path.name for path in depot.settings.depot_dir.iterdir()} == set(recovery.found)
            for handle in recovery.found:
                await depot.destroy(handle)
            await nothing_left(depot.settings)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_many_cycles_leave_nothing(tmp_path: Path, stack: Path) -> None:
    """200 containers made and destroyed, 20 at a time."""
    async with opened(tmp_path) as (depot, _):
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(10 * SCALE):
            spec = app(stack, limits=Limits(memory_bytes=32 << 20, disk_bytes=64 << 20))
            boxes = await asyncio.gather(*(depot.create(spec) for _ in range(20)))
            await asyncio.gather(*(box.run(sh("true")) for box in boxes))
            await asyncio.gather(*(depot.destroy(box.handle) for box in boxes))
            assert depot.handles() == ()
        await nothing_left(depot.settings, within_s=30)
        await until(lambda: leases_in_use(depot) == 0, lambda: "leases left")
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2, "descriptors left"


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_many_broken_creates_leave_nothing(tmp_path: Path, stack: Path) -> None:
    """50 creates, the rungs failing in turn, five at a time."""
    async with opened(tmp_path) as (depot, faults):
        descriptors = len(os.listdir("/proc/self/fd"))
        for turn in range(10 * SCALE):
            faults.rung = RUNGS[turn % len(RUNGS)].name
            results = await asyncio.gather(
                *(depot.create(app(stack)) for _ in range(5)), return_exceptions=True
            )
            assert [type(result) for result in results] == [CreateError] * 5
        await nothing_left(depot.settings)
        await until(lambda: leases_in_use(depot) == 0, lambda: "leases left")
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2, "descriptors left"
        assert not remains(depot.settings)
        assert not links()
