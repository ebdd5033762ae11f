"""A pid 1 that does not reply: every wait for it ends, and no other container waits because of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
import testhost
from depot_kit import app, close_empty, settings_for, sh, until
from depot_kit import depot as depot
from depot_kit import stack as stack

from container import Container, ContainerState, Depot, ExitStatus, WshdSilent
from container.jobs.records import LOST

pytestmark = pytest.mark.kernel
QUICK = {"guard_period_s": 0.2, "silence_s": 2.0}


@pytest_asyncio.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Depot]:
    """A depot of short patience."""
    opened = await Depot.open(settings_for(tmp_path, **QUICK))
    yield opened
    await close_empty(opened)


@contextmanager
def stopped(container: Container) -> Iterator[None]:
    """pid 1 stands still: it answers nothing, and its app runs on."""
    os.kill(container.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        try:
            os.kill(container.pid, signal.SIGCONT)
        except ProcessLookupError:
            return


async def test_a_silent_one_is_killed_and_its_jobs_end_is_known(guarded: Depot, stack: Path) -> None:
    """As lost, which is a crash to the agent; its neighbour is none the wiser."""
    silent, other = await guarded.create(app(stack)), await guarded.create(app(stack))
    job, neighbour = await silent.spawn(sh("sleep 1000")), await other.spawn(sh("sleep 1000"))
    direct = await silent.spawn_piped(sh("sleep 1000"))
    began = time.monotonic()
    with stopped(silent):
        statuses = await asyncio.wait_for(asyncio.gather(job.wait(), direct.wait()), 30)

    assert list(statuses) == [LOST, LOST]
    assert time.monotonic() - began >= QUICK["silence_s"]
    assert silent.state is ContainerState.DEAD
    assert neighbour.status is None
    assert (await other.run(sh("echo here"))).stdout == b"here\n"


async def test_one_that_answers_again_in_time_lives(tmp_path: Path, stack: Path) -> None:
    """Also after several short silences: patience begins anew with each answer. Together they are longer than it."""
    patience_s, silence_s = 4.0, 1.5
    depot = await Depot.open(settings_for(tmp_path, guard_period_s=0.2, silence_s=patience_s))
    container = await depot.create(app(stack))
    job = await container.spawn(sh("sleep 1000"))
    for _ in range(3):
        with stopped(container):
            await asyncio.sleep(silence_s)  # the time is what is tested; the rest of it is for a busy machine
        await container._body.jobs.look(10)
        await asyncio.sleep(0.5)
    assert (container.state, job.status) == (ContainerState.ACTIVE, None)
    await close_empty(depot)


async def test_each_request_but_wait_has_a_time_out(
    depot: Depot, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop's is its grace and a margin. A destroy with a grace kills in the end."""
    monkeypatch.setattr("container.wshd.STOP_MARGIN_S", 0.3)
    container = await depot.create(app(stack))
    job = await container.spawn(sh("sleep 1000"))
    with stopped(container):
        with pytest.raises(WshdSilent, match=r"list: no answer in 0\.2 s"):
            await container._body.jobs.look(0.2)
        with pytest.raises(WshdSilent, match=r"stop: no answer in 0\.5 s"):
            await container.end_jobs(0.2)
        with pytest.raises(WshdSilent, match=r"stop: no answer in 0\.4 s"):
            await container.stop(0.1)
        await asyncio.wait_for(depot.destroy(container.handle, grace_s=0.1), 30)
    assert depot.handles() == ()
    assert job.status == LOST


async def test_a_spawn_without_an_answer_may_have_been_done(
    depot: Depot, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job stays known, so that nobody starts it twice or loses its output; what wshd has not got, it never does."""
    container = await depot.create(app(stack))
    defaults = container._wshd._ask.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout_s", 0.2)
    with stopped(container):
        with pytest.raises(WshdSilent, match="spawn: no answer"):
            await container.spawn(sh("touch /home/vcap/spawned", job_id="app"))
    assert "app" in container.jobs


async def test_a_manager_that_begins_takes_a_silent_one_up_and_waits_for_it_no_longer_than_others(
    tmp_path: Path, stack: Path
) -> None:
    """It may be slow only. The others are served at once; it is killed when its patience is over."""
    first = await Depot.open(settings_for(tmp_path))
    silent = await first.create(app(stack, handle="a-silent"))
    other = await first.create(app(stack, handle="b-other"))
    for container in (silent, other):
        await container.spawn(sh("sleep 1000", job_id="app"))
    pid = silent.pid
    await first.close()
    os.kill(pid, signal.SIGSTOP)
    second = await Depot.open(settings_for(tmp_path, **QUICK))
    try:
        began = time.monotonic()
        recovery = await second.recover()

        assert recovery.found == ("a-silent", "b-other")
        assert (await second.find("b-other").run(sh("echo here"))).stdout == b"here\n"
        assert time.monotonic() - began < 25
        assert await asyncio.wait_for(second.find("a-silent").jobs["app"].wait(), 30) == LOST
        assert second.find("b-other").jobs["app"].status is None
    finally:
        await close_empty(second)


async def test_a_frozen_one_is_destroyed(depot: Depot, stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever froze it: a signal alone does not end a frozen process on v1, and pid 1 waits for it."""
    monkeypatch.setattr("container.body._DEATH_S", 1.0)
    container = await depot.create(app(stack))
    await container.spawn(sh("sleep 1000"))
    await asyncio.to_thread(container._body.cgroup.freeze)
    await asyncio.wait_for(depot.destroy(container.handle), 60)
    assert depot.handles() == ()


@contextmanager
def small_disk(place: Path) -> Iterator[Callable[[], None]]:
    """A file system of its own at ``place``; calling what it gives breaks it: no write goes through any more."""
    image = place.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True)

    def break_it() -> None:
        subprocess.run(["mount", "-o", "remount,abort", place], check=False)

    try:
        yield break_it
    finally:
        subprocess.run(["umount", place], check=True)
        image.unlink()


async def test_an_end_is_noticed_without_its_record(base_dir: Path, stack: Path) -> None:
    """The file system of the depot has become read-only under a running job; the pid 1 knows how it ended."""
    with small_disk(base_dir / "disk") as break_disk:
        testhost.own_depots.add(base_dir / "disk" / "depot")
        opened = await Depot.open(
            settings_for(base_dir / "disk", templates_dir=base_dir / "templates", disk_limits=False, **QUICK)
        )
        container = await opened.create(app(stack))
        job = await container.spawn(sh("read line; exit 7", stdin=None))
        sleeper = await container.spawn(sh("sleep 1000"))
        ending = await container.spawn(sh("while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9"))
        assert await asyncio.wait_for(job.wait(), 30) == ExitStatus(code=7)

        break_disk()
        await ending.signal(signal.SIGTERM)

        assert await asyncio.wait_for(ending.wait(), 30) == ExitStatus(signal=15)
        assert ending.record().status is None
        assert sleeper.status is None
        # Nothing can be removed from it: the disk goes as a whole, once the container's processes have ended.
        await container._body.kill()
        await until(lambda: container.state is ContainerState.DEAD, lambda: repr(container))
        for handle in opened.handles():
            with pytest.raises(OSError):
                await opened.destroy(handle)
        opened._held.clear()  # else its tables stay, for a next manager that would remove it
        await opened.close(remove_tables=True)
