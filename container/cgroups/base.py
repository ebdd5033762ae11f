"""The contract that cgroup v1 and v2 both fulfil (tests/kernel/test_cgroups_contract.py tests the host's version).

A container has two leaf cgroups beside each other: ``init`` for wshd, and ``job`` for everything else. Limits are set on
``job``. If they were set on the common parent, the page cache of the spool would count against the jobs' memory, and the
jobs' CPU limit would slow wshd. CPU shares are set on the container's own directory: shares compare a cgroup with its
siblings, and only at that level the siblings are other containers.

All calls are synchronous. All are short except those that wait for the kernel (``freeze``, ``kill_all``, ``destroy``);
call these in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from container.cgroups.figures import Pressure, Throttling
from container.cgroups.oom import OomWatch
from container.spec import CpuCap, Limits

#: How long the kernel may take to reap or to freeze.
KERNEL_TIMEOUT_S: Final = 10.0
LEAVES: Final = ("init", "job")
#: The CPU shares of a cgroup for which none were set (cgroups(7)). The same number is used on v1 and v2.
ORDINARY_SHARES: Final = 1024
#: (kind, major, minor, access); minor None: any.
DeviceRule: TypeAlias = tuple[str, int, int | None, str]
#: The devices that a container may use: those in its /dev. mknod is not allowed.
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
    """Checks a name that becomes a directory below each mount. ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what}: expected 1 to 128 of [A-Za-z0-9_.-], got {name!r}")
    return name


def leaf_paths(parent: str, name: str) -> tuple[str, ...]:
    """The ends of the leaves' paths below a mount."""
    return tuple(f"/{parent}/{name}/{leaf}" for leaf in LEAVES)


def read(path: Path) -> str:
    """The whole file. OSError."""
    return path.read_text()


def write(path: Path, value: str) -> None:
    """Writes a value with one write(2), as the kernel requires. OSError: it names the file and the value."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as e:
        raise OSError(e.errno, e.strerror, f"{path} <- {value}") from e
    finally:
        os.close(fd)


def key_values(text: str) -> dict[str, int]:
    """Parses lines of a word and a number, as in memory.stat."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def wait_for(done: Callable[[], bool], timeout_s: float = KERNEL_TIMEOUT_S) -> bool:
    """Polls ``done`` with growing pauses, since these file systems report no changes. False: it timed out."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0005
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
    return True


def remove_directory(path: Path, timeout_s: float) -> None:
    """Removes a cgroup, and tries again while the kernel still reaps its last process (EBUSY). Idempotent. OSError."""

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
        path.rmdir()  # raises the error of the kernel


class CgroupSet(ABC):
    """The cgroups of one container."""

    name: str
    #: Directories of a hierarchy that this set has none in.
    _missing: frozenset[Path] = frozenset()
    #: The ends of the paths of both leaves, as /proc/PID/cgroup shows them.
    _leaf_paths: tuple[str, ...]
    #: Files that a process writes "0" to in order to join (``tasks`` or ``cgroup.procs``).
    init_files: tuple[Path, ...]
    job_files: tuple[Path, ...]
    #: What the container sees below /sys/fs/cgroup: on v1 the controllers of each hierarchy, on v2 ``cgroup2``.
    shown: tuple[str, ...]

    @property
    def v1_directories(self) -> Mapping[str, Path]:
        """On cgroup v1 the directory of each controller that has the container's limits and counts; on v2 nothing."""
        return {}

    @abstractmethod
    def make(self) -> None:
        """Makes the directories, and denies all devices but ``DEVICES`` in both leaves."""

    @abstractmethod
    def exists(self) -> bool:
        """True if any of its directories exists."""

    @abstractmethod
    def set_memory(self, limit_bytes: int | None) -> int | None:
        """Limits memory and swap together; returns the limit that the kernel set (None: no limit).

        A limit below what is in use: v1 refuses it with EBUSY and keeps the old one; v2 sets it and kills in ``job``.
        v2 counts socket buffers as memory; v1 has a separate limit for them (`socket_limit_bytes`).
        """

    @abstractmethod
    def memory_limit_bytes(self) -> int | None:
        """None: no limit. OSError: the cgroup is gone. This holds for every method that reads."""

    @abstractmethod
    def set_cpu_shares(self, shares: int) -> int:
        """Sets the weight against other containers (1024 if never set); returns what the kernel set.

        v1 takes 2 to 262144, v2 1 to 10000.
        """

    def set_cpu_cap(self, cap: CpuCap | None) -> CpuCap | None:
        """Sets the hard limit of processor time of ``job``, None: no limit; returns what the kernel set.

        OSError: the kernel refused, and the former limit is in force; EOPNOTSUPP: it has no such limit, or no burst.
        """
        before = self.cpu_cap()
        try:
            self._write_cpu_cap(cap)
        except OSError as e:
            if before != cap:
                with contextlib.suppress(OSError):
                    self._write_cpu_cap(before)
            if isinstance(e, FileNotFoundError):
                what = (
                    "no burst (Linux 5.14)"
                    if "burst" in str(e.filename)
                    else "no hard limit (CONFIG_CFS_BANDWIDTH)"
                )
                raise OSError(errno.EOPNOTSUPP, f"cpu: the kernel has {what}", self.name) from e
            raise
        return self.cpu_cap()

    @abstractmethod
    def _write_cpu_cap(self, cap: CpuCap | None) -> None:
        """The burst goes first to 0: the kernel refuses a quota below it."""

    @abstractmethod
    def cpu_cap(self) -> CpuCap | None:
        """What is in force; None: no limit, or the kernel has none."""

    @abstractmethod
    def throttling(self) -> Throttling | None:
        """How the hard limit has worked so far; None: the kernel has none."""

    def pressure(self) -> Mapping[str, Pressure]:
        """How long processes waited for "cpu", "memory" and "io"; only v2 counts that for each cgroup, and not on every host."""
        return {}

    def set_limits(self, limits: Limits) -> None:
        """Sets those that are named; the others stay as they are. OSError."""
        if limits.memory_bytes is not None:
            self.set_memory(limits.memory_bytes)
        if limits.cpu_shares is not None:
            self.set_cpu_shares(limits.cpu_shares)
        if limits.pids is not None:
            self.set_pids(limits.pids)
        if limits.cpu_cap is not None:
            self.set_cpu_cap(limits.cpu_cap)

    @abstractmethod
    def take_up(self) -> None:
        """Moves the CPU shares of a former manager away from ``job``, where older releases had set them."""

    @abstractmethod
    def set_pids(self, count: int | None) -> None:
        """Limits the number of tasks; None: no limit. If there are more already, they stay and none can be added."""

    @abstractmethod
    def memory_stat(self) -> Mapping[str, int]:
        """The kernel's own counters (memory.stat), whose names differ between v1 and v2."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """The memory that the jobs use: what is charged to ``job``, without the page cache that can be dropped."""

    @abstractmethod
    def cpu_ns(self) -> int:
        """CPU time used so far, in nanoseconds."""

    @abstractmethod
    def cpu_user_system_ns(self) -> tuple[int, int]:
        """CPU time as (user, system). v1 counts in the kernel's ticks of 10 ms."""

    @abstractmethod
    def pids(self) -> int:
        """The number of tasks now."""

    @abstractmethod
    def oom_kills(self) -> int:
        """How many processes the kernel has killed so far because memory ran out."""

    @abstractmethod
    def processes(self) -> tuple[int, ...]:
        """The host pids in both leaves."""

    def freeze(self) -> None:
        """Stops every process of ``job``. TimeoutError: one of them could not be stopped; then all are thawed."""
        self._set_frozen(frozen=True)
        if not wait_for(self._is_frozen):
            self._set_frozen(frozen=False)
            why = f"the kernel has not frozen all processes within {KERNEL_TIMEOUT_S:g} s"
            raise TimeoutError(errno.ETIMEDOUT, why, self.name)

    def thaw(self) -> None:
        """Lets frozen processes run on. Idempotent, also if the cgroup is gone."""
        with contextlib.suppress(FileNotFoundError):
            self._set_frozen(frozen=False)

    def watch_oom(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` after OOM kills, in the running ``loop``. Returns the idempotent function that ends it. OSError."""

        def subscribe(on_event: Callable[[], None]) -> Callable[[], None]:
            return self._follow_oom(loop, on_event)

        return OomWatch(loop, subscribe, self.oom_kills, callback).stop

    def kill_all(self) -> None:
        """Sends SIGKILL to every process of the set, frozen ones too, until the kernel lists none.

        The set cannot be used afterwards: on v1 ``job`` accepts no new process.
        """

        def none_left() -> bool:
            found = self.processes()
            if found:
                self._kill(found)
            return not found

        self.thaw()
        wait_for(none_left)

    def destroy(self, timeout_s: float = KERNEL_TIMEOUT_S) -> None:
        """Removes the directories. Idempotent. OSError EBUSY: a process has not ended."""
        for directory in self._directories():
            remove_directory(directory, timeout_s)

    def holds(self, membership: str) -> bool:
        """Whether a process is in a leaf of the set in every hierarchy. ``membership``: its /proc/PID/cgroup. Pure."""
        for line in membership.splitlines():
            controllers, _, path = line.partition(":")[2].partition(":")
            if self._is_of_hierarchy(controllers.split(",")) and not path.endswith(self._leaf_paths):
                return False
        return True

    def put_back(self, pid: int, leaf: str) -> None:
        """Moves a process to a leaf, in every hierarchy. FileNotFoundError: one was removed. ProcessLookupError, OSError."""
        for file in self.init_files if leaf == "init" else self.job_files:
            if file.parents[1] not in self._missing:
                write(file.with_name("cgroup.procs"), str(pid))

    def note_missing(self) -> None:
        """Directories that are not there now count as never made: older managers used fewer hierarchies."""
        self._missing = frozenset(top for file in self.init_files if not (top := file.parents[1]).exists())

    @abstractmethod
    def _is_of_hierarchy(self, controllers: Collection[str]) -> bool:
        """Whether the set has directories in the hierarchy of these controllers."""

    @abstractmethod
    def _set_frozen(self, *, frozen: bool) -> None: ...

    @abstractmethod
    def _is_frozen(self) -> bool: ...

    @abstractmethod
    def _follow_oom(
        self, loop: asyncio.AbstractEventLoop, on_event: Callable[[], None]
    ) -> Callable[[], None]:
        """Calls back at each OOM event, and when the cgroup is removed. Returns the idempotent function that ends it. OSError."""

    @abstractmethod
    def _kill(self, pids: tuple[int, ...]) -> None:
        """Sends SIGKILL to all processes of the set, faster than a fork bomb makes new ones. ``pids`` were seen just now."""

    @abstractmethod
    def _directories(self) -> tuple[Path, ...]:
        """All directories of the set, children before their parents."""


class Cgroups(ABC):
    """The cgroups of all containers, below one parent directory."""

    def __init__(self, parent: str) -> None:
        self.parent = check_name("cgroup parent", parent)
        #: Limits that this host's kernel cannot enforce, as texts for the log.
        self.gaps: tuple[str, ...] = ()
        self._make_parents()

    @property
    def directory(self) -> Path:
        """The first parent directory; v1 has one in each hierarchy."""
        return self._parents()[0]

    def create(self, name: str) -> CgroupSet:
        """Makes the cgroups of a container. FileExistsError: the name is in use. OSError: the kernel refused; nothing is left."""
        made = self._set(check_name("cgroup", name))
        if made.exists():
            raise FileExistsError(errno.EEXIST, "a cgroup of this name exists", name)
        self._make_parents()  # another manager with the same parent may have removed them
        try:
            made.make()
        except BaseException:
            made.destroy()
            raise
        return made

    def find(self, name: str) -> CgroupSet | None:
        """The set of that name; None: no part of it exists."""
        found = self._set(check_name("cgroup", name))
        found.note_missing()
        return found if found.exists() else None

    def list(self) -> tuple[str, ...]:
        """The names of all sets, also of those that were removed in part."""
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
