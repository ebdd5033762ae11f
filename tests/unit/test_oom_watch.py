"""The watch on OOM kills of cgroup v2, on files that look like a cgroup's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from container.cgroups.oom import SharedWatcher
from container.cgroups.v2 import CgroupSetV2

pytestmark = pytest.mark.unit


def make(parent: Path, name: str) -> Path:
    """What the kernel has for a fresh container, as far as the watch looks."""
    (parent / name / "job").mkdir(parents=True)
    events = parent / name / "job" / "memory.events"
    events.write_text("oom 0\noom_kill 0\n")
    return events


def kill(events: Path, count: int) -> None:
    """One write, as the kernel's change is one."""
    fd = os.open(events, os.O_WRONLY)
    try:
        os.pwrite(fd, f"oom {count}\noom_kill {count}\n".encode(), 0)
    finally:
        os.close(fd)


def inotify_instances() -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += "inotify" in os.readlink(link)
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


class Told:
    """Calls, waited for."""

    def __init__(self) -> None:
        self.count = 0
        self._more = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._more.set()

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.count < count:
                self._more.clear()
                await self._more.wait()


async def test_all_containers_share_one_instance_and_each_hears_of_its_own(tmp_path: Path) -> None:
    """The kernel lets a user have 128; two hundred containers are watched with one, which the last closes."""
    before, events, loop = inotify_instances(), SharedWatcher(), asyncio.get_running_loop()
    files = [make(tmp_path, f"c{number}") for number in range(200)]
    told = [Told() for _ in files]
    stops = [
        CgroupSetV2(tmp_path, f"c{number}", events).watch_oom(loop, one) for number, one in enumerate(told)
    ]
    assert inotify_instances() == before + 1

    kill(files[7], 1)
    kill(files[150], 1)
    await told[7].wait(1)
    await told[150].wait(1)
    assert sum(one.count for one in told) == 2

    for stop in stops:
        assert inotify_instances() == before + 1
        stop()
        stop()
    assert inotify_instances() == before


async def test_a_watch_that_ended_is_silent_and_the_others_go_on(tmp_path: Path) -> None:
    """Also when a cgroup goes: that ends its watch, and no other."""
    before, events, loop = inotify_instances(), SharedWatcher(), asyncio.get_running_loop()
    files = [make(tmp_path, name) for name in ("ended", "gone", "other")]
    ended, gone, other = Told(), Told(), Told()
    stops = [
        CgroupSetV2(tmp_path, name, events).watch_oom(loop, one)
        for name, one in (("ended", ended), ("gone", gone), ("other", other))
    ]
    stops[0]()
    kill(files[0], 1)
    files[1].unlink()
    for count in (1, 2):
        kill(files[2], count)
        await other.wait(count)

    assert (ended.count, gone.count, other.count) == (0, 0, 2)
    stops[2]()
    assert inotify_instances() == before, "the watch of the cgroup that is gone holds the instance"
    stops[1]()


async def test_a_cgroup_that_cannot_be_watched_holds_nothing(tmp_path: Path) -> None:
    """The first of a host as little as a later one."""
    before, events, loop = inotify_instances(), SharedWatcher(), asyncio.get_running_loop()
    with pytest.raises(FileNotFoundError):
        CgroupSetV2(tmp_path, "absent", events).watch_oom(loop, Told())
    with pytest.raises(FileNotFoundError):
        events.start(tmp_path / "absent", Told())

    assert inotify_instances() == before
