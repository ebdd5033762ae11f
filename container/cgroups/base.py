"""The contract over cgroup v1 and v2 (tests/kernel/test_cgroups_contract.py runs over the host's own).

A container has two leaves beside each other: ``init`` for wshd, and ``job`` for everything else. Limits are set on ``job``. On
their common parent, the page cache of the spool would count against the jobs' memory, and their CPU limit would slow wshd.
CPU shares are set on the container's own directory, because they weigh a cgroup against its siblings, and only there the
siblings are other containers.

All calls are synchronous and short, except those that wait for the kernel (``freeze``, ``kill_all``, ``destroy``): these
belong in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from container.cgroups.oom import OomWatch

#: How long the kernel may take to reap or to freeze.
KERNEL_TIMEOUT_S: Final = 10.0
LEAVES: Final = ("init", "job")
#: What a cgroup weighs that nobody gave CPU shares (cgroups(7)). Containers weigh the same on v1 and v2.
ORDINARY_SHARES: Final = 1024
#: (kind, major, minor, access); minor None: any.
DeviceRule: TypeAlias = tuple[str, int, int | None, str]
#: What a container may use: the devices that its /dev has. mknod is not allowed.
DEVICES: Final[tuple[DeviceRule, ...]] = (
    ("c", 1, 3, "rw"),  # null
    ("c", 1, 5, "rw"),  # zero
    ("c", 1, 7, "rw"),  # full
    ("c", 1, 8, "rw"),  # random
    ("c", 1, 9, "rw"),  # urandom
    ("c", 5, 0, "rw"),  # tty
    ("c", 5, 2, "rw"),  # ptmx
    ("c", 136, None, "rw"),  # pts
)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def check_name(what: str, name: str) -> str:
    """A name becomes a directory below each mount: one plain word. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what}: expected a word of [A-Za-z0-9_.-], got {name!r}")
    return name


def read(path: Path) -> str:
    """The whole file. OSError."""
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
    """Lines of a word and a number, as in memory.stat."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def wait_for(done: Callable[[], bool], timeout_s: float = KERNEL_TIMEOUT_S) -> bool:
    """Asks until ``done``, ever more slowly, because these file systems report none of it. False: not in time."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0005
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
    return True


def remove_directory(path: Path, timeout_s: float) -> None:
    """rmdir of a cgroup. The kernel refuses with EBUSY while the last process is being reaped. Idempotent. OSError."""

    def removed() -> bool:
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as e:
            if e.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            return False
        return True

    if not wait_for(removed, timeout_s):
        path.rmdir()  # raises the kernel's own reason


class CgroupSet(ABC):
    """The cgroups of one container."""

    name: str
    #: Files that a process writes "0" to in order to join (``tasks`` or ``cgroup.procs``).
    init_files: tuple[Path, ...]
    job_files: tuple[Path, ...]
    #: What is mounted below /sys/fs/cgroup inside: for each hierarchy of v1 its controllers, or ``cgroup2``.
    shown: tuple[str, ...]

    @abstractmethod
    def make(self) -> None:
        """Makes the directories, and denies all devices but ``DEVICES`` in both leaves."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether any part of it is there."""

    @abstractmethod
    def set_memory(self, limit_bytes: int | None) -> int | None:
        """Memory and swap together; returns what the kernel took (None: no limit).

        Below what is in use, v1 refuses with EBUSY and keeps the old limit; v2 takes it and kills in ``job``.
        Buffers of sockets are memory on v2; v1 counts them beside it (`socket_limit_bytes`).
        """

    @abstractmethod
    def memory_limit_bytes(self) -> int | None:
        """None: no limit. OSError, as for all that is read here: the cgroup is gone."""

    @abstractmethod
    def set_cpu_shares(self, shares: int) -> int:
        """Weight against other containers, 1024 where none is set; returns what the kernel took (v1: 2 to
        262144, v2: 1 to 10000).
        """

    @abstractmethod
    def take_up(self) -> None:
        """Prepares a set of a former manager for `set_cpu_shares`: older releases set the shares on ``job``."""

    @abstractmethod
    def set_pids(self, count: int | None) -> None:
        """At most so many tasks; None: no limit. If there are more already, none can be added."""

    @abstractmethod
    def memory_stat(self) -> Mapping[str, int]:
        """The kernel's own counters (memory.stat), whose names differ between v1 and v2."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """What the jobs use: what is charged to ``job``, without the page cache that can be dropped at once."""

    @abstractmethod
    def cpu_ns(self) -> int:
        """CPU time used so far, in nanoseconds."""

    @abstractmethod
    def cpu_user_system_ns(self) -> tuple[int, int]:
        """(user, system) of it; on v1 in the kernel's ticks of 10 ms."""

    @abstractmethod
    def pids(self) -> int:
        """How many tasks there are now."""

    @abstractmethod
    def oom_kills(self) -> int:
        """How many processes the kernel has killed for want of memory so far."""

    @abstractmethod
    def processes(self) -> tuple[int, ...]:
        """Host pids in any leaf."""

    def freeze(self) -> None:
        """Stops every process of ``job``. TimeoutError: one cannot be stopped; then all go on."""
        self._set_frozen(frozen=True)
        if not wait_for(self._is_frozen):
            self._set_frozen(frozen=False)
            raise TimeoutError(errno.ETIMEDOUT, "not frozen in time", self.name)

    def thaw(self) -> None:
        """Idempotent, also when the cgroup is gone."""
        with contextlib.suppress(FileNotFoundError):
            self._set_frozen(frozen=False)

    def watch_oom(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` after OOM kills, in ``loop``, which runs. Returns what ends the watch (idempotent). OSError."""

        def subscribe(on_event: Callable[[], None]) -> Callable[[], None]:
            return self._follow_oom(loop, on_event)

        return OomWatch(loop, subscribe, self.oom_kills, callback).stop

    def kill_all(self) -> None:
        """Sends SIGKILL to every process of the set, frozen ones too, until the kernel shows none any more.

        The set is of no use afterwards: on v1 ``job`` takes no new process.
        """

        def none_left() -> bool:
            found = self.processes()
            if found:
                self._kill(found)
            return not found

        self.thaw()
        wait_for(none_left)

    def destroy(self, timeout_s: float = KERNEL_TIMEOUT_S) -> None:
        """Removes the directories; idempotent. Raises OSError EBUSY: there is a process that does not go."""
        for directory in self._directories():
            remove_directory(directory, timeout_s)

    @abstractmethod
    def _set_frozen(self, *, frozen: bool) -> None: ...

    @abstractmethod
    def _is_frozen(self) -> bool: ...

    @abstractmethod
    def _follow_oom(
        self, loop: asyncio.AbstractEventLoop, on_event: Callable[[], None]
    ) -> Callable[[], None]:
        """Calls back at each OOM event, and when the cgroup goes. Returns what ends it (idempotent). OSError."""

    @abstractmethod
    def _kill(self, pids: tuple[int, ...]) -> None:
        """Sends SIGKILL to all in the set; ``pids`` were seen there a moment ago. It must be faster than a fork bomb."""

    @abstractmethod
    def _directories(self) -> tuple[Path, ...]:
        """All directories of the set, children before their parents."""


class Cgroups(ABC):
    """The cgroups of all containers, below one parent directory."""

    def __init__(self, parent: str) -> None:
        self.parent = check_name("cgroup parent", parent)
        #: What this host's kernel cannot do, as texts for the log.
        self.gaps: tuple[str, ...] = ()
        self._make_parents()

    @property
    def directory(self) -> Path:
        """The first of the parent directories; v1 has one in each hierarchy."""
        return self._parents()[0]

    def create(self, name: str) -> CgroupSet:
        """Makes the cgroups of a container. FileExistsError: the name is taken. OSError: the kernel refused, and nothing is left."""
        made = self._set(check_name("cgroup", name))
        if made.exists():
            raise FileExistsError(errno.EEXIST, "a cgroup of that name is there", name)
        self._make_parents()  # another manager that shares them may have removed them
        try:
            made.make()
        except BaseException:
            made.destroy()
            raise
        return made

    def find(self, name: str) -> CgroupSet | None:
        """The set of that name; None: no part of it exists."""
        found = self._set(check_name("cgroup", name))
        return found if found.exists() else None

    def list(self) -> tuple[str, ...]:
        """The names of all sets, also of those that are gone in part."""
        tops = (top for top in self._parents() if top.exists())
        return tuple(sorted({entry.name for top in tops for entry in top.iterdir() if entry.is_dir()}))

    def remove_parents(self) -> None:
        """Removes the parent directories that are empty. Idempotent."""
        for top in self._parents():
            try:
                top.rmdir()
            except FileNotFoundError:
                continue
            except OSError as e:
                if e.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise

    @abstractmethod
    def _set(self, name: str) -> CgroupSet: ...

    @abstractmethod
    def _parents(self) -> tuple[Path, ...]: ...

    @abstractmethod
    def _make_parents(self) -> None:
        """Idempotent."""
