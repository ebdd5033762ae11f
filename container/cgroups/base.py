"""One interface over cgroup v1 and v2 (contract test: tests/kernel/test_cgroups_contract.py).

A container has two leaves beside each other, ``init`` for wshd and ``job`` for everything else. Limits stand on
``job``: on the parent, the spool's page cache would eat the app's memory and its CPU quota would slow wshd.
All calls are short and synchronous; ``destroy`` may wait for the kernel and belongs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

DESTROY_TIMEOUT_S = 10.0
#: (kind, major, minor, access); None: any. mknod is not allowed, only use of what /dev has.
DEVICES: tuple[tuple[str, int, int | None, str], ...] = (
    ("c", 1, 3, "rw"),
    ("c", 1, 5, "rw"),
    ("c", 1, 7, "rw"),
    ("c", 1, 8, "rw"),
    ("c", 1, 9, "rw"),
    ("c", 5, 0, "rw"),
    ("c", 5, 2, "rw"),
    ("c", 136, None, "rw"),
)


def read(path: Path) -> str:
    return path.read_text()


def write(path: Path, value: str) -> None:
    """One write(2): the kernel takes a value as a whole."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as e:
        raise OSError(e.errno, e.strerror, f"{path} <- {value}") from e
    finally:
        os.close(fd)


def key_values(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def remove_directory(path: Path) -> None:
    """rmdir of a cgroup; the kernel says EBUSY while the last process is being reaped."""
    deadline = time.monotonic() + DESTROY_TIMEOUT_S
    pause_s = 0.0005
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as e:
            if e.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > deadline:
                raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)
        else:
            return


class CgroupSet(ABC):
    """The cgroups of one container."""

    name: str
    #: Files that a process writes "0" to in order to join (``tasks`` or ``cgroup.procs``).
    init_files: tuple[Path, ...]
    job_files: tuple[Path, ...]

    @abstractmethod
    def set_memory(self, limit_bytes: int | None) -> int | None:
        """Memory and swap together; returns what the kernel took (None: no limit)."""

    @abstractmethod
    def set_cpu_shares(self, shares: int) -> int:
        """Relative weight, 1024 is one ordinary process tree; returns what the kernel took."""

    @abstractmethod
    def set_pids(self, count: int | None) -> None: ...

    @abstractmethod
    def memory_limit_bytes(self) -> int | None: ...

    @abstractmethod
    def memory_stat(self) -> Mapping[str, int]: ...

    @abstractmethod
    def memory_bytes(self) -> int:
        """What the app uses: charged, less the page cache that can go at once (dea-bus.md 2.11)."""

    @abstractmethod
    def cpu_ns(self) -> int: ...

    @abstractmethod
    def cpu_user_system_ns(self) -> tuple[int, int]: ...

    @abstractmethod
    def pids(self) -> int: ...

    @abstractmethod
    def oom_kills(self) -> int: ...

    @abstractmethod
    def freeze(self) -> None: ...

    @abstractmethod
    def thaw(self) -> None: ...

    @abstractmethod
    def _oom_fd(self) -> int:
        """A descriptor that becomes readable at an OOM event; the caller closes it."""

    @abstractmethod
    def _directories(self) -> tuple[Path, ...]:
        """All directories of the set, children before their parents."""

    @abstractmethod
    def processes(self) -> tuple[int, ...]:
        """Host pids in any leaf."""

    def watch_oom(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` after each OOM kill. Returns what ends the watch (idempotent)."""
        fd = self._oom_fd()
        seen = self.oom_kills()

        def ready() -> None:
            nonlocal seen
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
            try:
                now = self.oom_kills()
            except OSError:
                stop()  # the cgroup is gone
                return
            # v1 tells of the attempt before the kill is counted: one more look a moment later
            if now > seen:
                seen = now
                callback()
            elif loop.is_running():
                loop.call_later(0.05, again)

        def again() -> None:
            nonlocal seen
            if fd < 0:
                return
            with contextlib.suppress(OSError):
                now = self.oom_kills()
                if now > seen:
                    seen = now
                    callback()

        def stop() -> None:
            nonlocal fd
            if fd >= 0:
                loop.remove_reader(fd)
                os.close(fd)
                fd = -1

        loop.add_reader(fd, ready)
        return stop

    def kill_all(self) -> None:
        """SIGKILL to every process in the set, until none is left that the kernel shows (bounded)."""
        self.thaw()
        for _ in range(100):
            found = self.processes()
            if not found:
                return
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)

    def destroy(self) -> None:
        """Removes the directories; idempotent. Blocks while the kernel still reaps (at most 10 s)."""
        for directory in self._directories():
            remove_directory(directory)


class Cgroups(ABC):
    """All sets below one parent."""

    parent: str

    @abstractmethod
    def create(self, name: str) -> CgroupSet: ...

    @abstractmethod
    def find(self, name: str) -> CgroupSet | None:
        """The set of that name if any part of it exists."""

    @abstractmethod
    def list(self) -> tuple[str, ...]: ...

    @abstractmethod
    def remove_parents(self) -> None:
        """Removes the parent directories when they are empty."""
