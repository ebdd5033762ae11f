"""Helpers of the cgroup tests: a cgroup parent for each test, and processes that join a set."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from container.cgroups import Cgroups, CgroupSet, host_hierarchy, open_backend


@pytest.fixture
def backend() -> Iterator[Cgroups]:
    opened = open_backend(f"garrison-test-{os.getpid()}")
    yield opened
    for name in opened.list():
        left = opened.find(name)
        assert left is not None
        left.kill_all()
        left.destroy()
    opened.remove_parents()


@pytest.fixture
def box(backend: Cgroups) -> CgroupSet:
    return backend.create("box")


class Inside:
    """A child that joins the leaf ``job`` as a container's job does, then runs ``work`` in there."""

    def __init__(self, box: CgroupSet, work: Callable[[], object], *, uid: int = 0) -> None:
        joins = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in box.job_files]
        self._read, write = os.pipe()
        gc.freeze()  # the child's collector would write to every object of the test process, and the pages count as its own
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                if uid:
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                for fd in joins:
                    os.write(fd, b"0")
                os.write(write, b"in")
                work()
                status = 0
            except OSError as e:
                status = e.errno or 1
            finally:
                os._exit(status)
        gc.unfreeze()
        for fd in (*joins, write):
            os.close(fd)
        assert os.read(self._read, 2) == b"in", f"the child could not join: {self.wait()}"

    def wait(self) -> int:
        """The exit code, or minus the signal."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._read)
        return os.waitstatus_to_exitcode(status)


def idle() -> None:
    signal.pause()


def spin() -> None:
    while True:
        pass


def eat(size_bytes: int) -> mmap.mmap:
    """Anonymous memory, every page touched; held for as long as the answer is."""
    pages = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size_bytes, 4096):
        pages[at] = 1
    return pages


def bomb() -> None:
    while True:
        with contextlib.suppress(OSError):
            os.fork()


def until(fact: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)


def directories(backend: Cgroups, name: str) -> list[Path]:
    """Where a set lies, asked of the file system and not of the code under test."""
    points = dict.fromkeys(host_hierarchy().mounts.values())
    return [top for point in points if (top := point / backend.parent / name).exists()]
