"""cgroup v1: a directory for each container in each hierarchy.

cgroupspy reads and writes cpu, cpuacct, memory and devices. It has no controllers for pids and freezer; their files are
written here. The nodes of cgroupspy are made by hand: its `Tree()` walks every cgroup of the host (0.3 s with 1,600) and does
not support a mount that several controllers share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from cgroupspy.controllers import CpuAcctController, CpuController, DevicesController, MemoryController
from cgroupspy.nodes import Node

from container.cgroups.base import (
    DEVICES,
    LEAVES,
    ORDINARY_SHARES,
    Cgroups,
    CgroupSet,
    key_values,
    leaf_paths,
    read,
    write,
)
from container.cgroups.detect import V1_NEEDED, V1_WANTED, Hierarchy
from container.cgroups.figures import Throttling, parse_throttling
from container.cgroups.oom import follow_eventfd
from container.spec import CpuCap

#: Without a limit memory.limit_in_bytes reads as 2^63 rounded to pages. Any value from here on means "no limit".
_NO_LIMIT: Final = 1 << 62
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_TCP: Final = "memory.kmem.tcp.limit_in_bytes"
_LEAST_SOCKET_BYTES: Final = 8 << 20


def socket_limit_bytes(memory_bytes: int) -> int:
    """The limit for socket buffers that goes with a memory limit, since v1 does not count them as memory. Pure.

    The kernel's counter is named after TCP and counts buffers of UDP too. The limit is soft: each socket still gets its
    first pages. A quarter of the memory limit keeps the sum of both well below one and a half times the memory limit.
    """
    return max(memory_bytes // 4, _LEAST_SOCKET_BYTES)


def _node(directory: Path) -> Node:
    """A node for a controller, which uses only its path."""
    return Node(os.fsencode(directory))


def _set(controller: Any, name: str, value: object) -> None:
    """Sets an attribute of a cgroupspy controller. OSError: it names the file and the value, which cgroupspy's own does not."""
    try:
        setattr(controller, name, value)
    except OSError as e:
        where = Path(os.fsdecode(controller.node.full_path))
        raise OSError(e.errno, e.strerror, f"{where}: {name} <- {value}") from e


class CgroupSetV1(CgroupSet):
    """The directories of one container in every hierarchy. Each method's contract is in base.py."""

    def __init__(self, mounts: Mapping[str, Path], shown: tuple[str, ...], parent: str, name: str) -> None:
        self.name = name
        self._leaf_paths = leaf_paths(parent, name)
        self.shown = shown
        tops = {controller: mount / parent / name for controller, mount in mounts.items()}
        # co-mounted controllers share a directory
        self._tops = tuple(dict.fromkeys(tops.values()))
        self._of = tops
        self.init_files = tuple(top / "init" / "tasks" for top in self._tops)
        self.job_files = tuple(top / "job" / "tasks" for top in self._tops)
        self._pids = tops["pids"] / "job"
        self._freezer = tops["freezer"] / "job"
        self._memory_dir = tops["memory"] / "job"
        self._cpu: Any = CpuController(_node(tops["cpu"]))
        self._job_cpu_dir = tops["cpu"] / "job"
        self._job_cpu: Any = CpuController(_node(self._job_cpu_dir))
        self._cpuacct: Any = CpuAcctController(_node(tops["cpuacct"] / "job"))
        self._memory: Any = MemoryController(_node(self._memory_dir))
        self._devices: tuple[Any, ...] = tuple(
            DevicesController(_node(tops["devices"] / leaf)) for leaf in LEAVES
        )

    @property
    def v1_directories(self) -> Mapping[str, Path]:
        leaves = {name: top / "job" for name, top in self._of.items()}
        return {**leaves, "cpu": self._of["cpu"]}  # shares are those of the whole set

    def make(self) -> None:
        for top in self._tops:
            for leaf in LEAVES:
                (top / leaf).mkdir(parents=True)
        for devices in self._devices:
            _set(devices, "deny", "a *:* rwm")
            for kind, major, minor, access in DEVICES:
                _set(devices, "allow", f"{kind} {major}:{'*' if minor is None else minor} {access}")

    def exists(self) -> bool:
        return any(top.exists() for top in self._tops)

    def set_memory(self, limit_bytes: int | None) -> int | None:
        before = self.memory_limit_bytes()
        names = ["limit_in_bytes"]
        if (self._memory_dir / "memory.memsw.limit_in_bytes").exists():
            names.append("memsw_limit_in_bytes")
        # The limit of memory may never exceed that of memory+swap, so a rise writes the latter first (memory.rst of v1).
        if limit_bytes is None or (before is not None and limit_bytes > before):
            names.reverse()
        done: list[str] = []
        try:
            for name in names:
                _set(self._memory, name, limit_bytes)
                done.append(name)
            self._set_sockets(limit_bytes)
        except OSError:
            for name in reversed(done):
                _set(self._memory, name, before)
            raise
        return self.memory_limit_bytes()

    def _set_sockets(self, memory_bytes: int | None) -> None:
        """OSError EBUSY: sockets hold more than that already. `gaps` names a kernel without this file."""
        with contextlib.suppress(FileNotFoundError):
            limit = -1 if memory_bytes is None else socket_limit_bytes(memory_bytes)
            write(self._memory_dir / _TCP, str(limit))

    def memory_limit_bytes(self) -> int | None:
        limit = self._memory.limit_in_bytes
        return None if limit is None or limit >= _NO_LIMIT else int(limit)

    def set_cpu_shares(self, shares: int) -> int:
        _set(self._cpu, "shares", shares)
        return int(self._cpu.shares)

    def _write_cpu_cap(self, cap: CpuCap | None) -> None:
        burst = self._job_cpu_dir / "cpu.cfs_burst_us"
        if burst.exists():
            write(burst, "0")
        if cap is not None:
            write(self._job_cpu_dir / "cpu.cfs_period_us", str(cap.period_us))
        write(self._job_cpu_dir / "cpu.cfs_quota_us", "-1" if cap is None else str(cap.quota_us))
        if cap is not None and cap.burst_us:
            write(burst, str(cap.burst_us))

    def cpu_cap(self) -> CpuCap | None:
        try:
            quota = int(read(self._job_cpu_dir / "cpu.cfs_quota_us"))
        except FileNotFoundError:
            if self._job_cpu_dir.exists():
                return None
            raise
        if quota < 0:
            return None
        burst = self._job_cpu_dir / "cpu.cfs_burst_us"
        period = int(read(self._job_cpu_dir / "cpu.cfs_period_us"))
        return CpuCap(quota, period, int(read(burst)) if burst.exists() else 0)

    def throttling(self) -> Throttling | None:
        return parse_throttling(key_values(read(self._job_cpu_dir / "cpu.stat")))

    def take_up(self) -> None:
        if self._job_cpu.shares != ORDINARY_SHARES:
            _set(self._job_cpu, "shares", ORDINARY_SHARES)

    def set_pids(self, count: int | None) -> None:
        write(self._pids / "pids.max", "max" if count is None else str(count))

    def memory_stat(self) -> Mapping[str, int]:
        stat: Mapping[str, int] = self._memory.stat
        return stat

    def memory_bytes(self) -> int:
        stat = self.memory_stat()
        return max(0, stat["total_rss"] + stat["total_cache"] - stat["total_inactive_file"])

    def cpu_ns(self) -> int:
        return int(self._cpuacct.usage)

    def cpu_user_system_ns(self) -> tuple[int, int]:
        ticks = self._cpuacct.acct_stat
        return ticks["user"] * _TICK_NS, ticks["system"] * _TICK_NS

    def pids(self) -> int:
        return int(read(self._pids / "pids.current"))

    def oom_kills(self) -> int:
        return int(self._memory.oom_control["oom_kill"])

    def processes(self) -> tuple[int, ...]:
        found: set[int] = set()
        for top in self._tops:
            for leaf in LEAVES:
                with contextlib.suppress(FileNotFoundError):
                    found.update(int(word) for word in read(top / leaf / "cgroup.procs").split())
        found.discard(0)  # a process of a pid namespace that is not visible here
        return tuple(sorted(found))

    def _is_of_hierarchy(self, controllers: Collection[str]) -> bool:
        return any(name in self._of and self._of[name] not in self._missing for name in controllers)

    def _set_frozen(self, *, frozen: bool) -> None:
        write(self._freezer / "freezer.state", "FROZEN" if frozen else "THAWED")

    def _is_frozen(self) -> bool:
        return read(self._freezer / "freezer.state").strip() == "FROZEN"

    def _follow_oom(
        self, loop: asyncio.AbstractEventLoop, on_event: Callable[[], None]
    ) -> Callable[[], None]:
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            control = os.open(self._memory_dir / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                write(self._memory_dir / "cgroup.event_control", f"{event} {control}")
            finally:
                os.close(control)
        except BaseException:
            os.close(event)
            raise
        return follow_eventfd(loop, event, on_event)

    def _kill(self, pids: tuple[int, ...]) -> None:
        """Opens pidfds and lists the pids once more, since a pid may belong to another process by now."""
        with contextlib.suppress(FileNotFoundError):
            self.set_pids(0)
        opened: dict[int, int] = {}
        try:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    opened[pid] = os.pidfd_open(pid)
            for pid in self.processes():
                if pid in opened:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(opened[pid], signal.SIGKILL)
        finally:
            for fd in opened.values():
                os.close(fd)

    def _directories(self) -> tuple[Path, ...]:
        return tuple(path for top in self._tops for path in (top / "init", top / "job", top))


class CgroupsV1(Cgroups):
    """All cgroups of v1. ``hierarchy``: which controllers are mounted where."""

    def __init__(self, hierarchy: Hierarchy, parent: str) -> None:
        wanted = (name for name in V1_WANTED if name in hierarchy.mounts)
        self._mounts = {name: hierarchy.mounts[name] for name in (*V1_NEEDED, *wanted)}
        super().__init__(parent)
        self._together = hierarchy.together
        if not (self._mounts["memory"] / parent / _TCP).exists():
            self.gaps += (f"no {_TCP}: buffers of sockets are not limited",)

    def _set(self, name: str) -> CgroupSet:
        points = dict.fromkeys(self._mounts.values())
        shown = tuple(",".join(self._together[point]) for point in points if point in self._together)
        return CgroupSetV1(self._mounts, shown, self.parent, name)

    def _parents(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(mount / self.parent for mount in self._mounts.values()))

    def _make_parents(self) -> None:
        for top in self._parents():
            top.mkdir(exist_ok=True)
        if "cpuset" in self._mounts:
            self._open_cpuset(self._mounts["cpuset"] / self.parent)

    def _open_cpuset(self, top: Path) -> None:
        """Fills the parent's cpuset. A new cpuset is empty and accepts no process; those below ``top`` copy from it.

        If the kernel refuses (a sibling has exclusive CPUs), containers run without a cpuset.
        """
        try:
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not read(top / name).strip():
                    write(top / name, read(top.parent / name).strip())
            if read(top / "cgroup.clone_children").strip() != "1":
                write(top / "cgroup.clone_children", "1")
        except OSError as e:
            if list(self._mounts.values()).count(self._mounts["cpuset"]) > 1:
                raise  # other controllers share this mount and need its directories
            del self._mounts["cpuset"]
            self.gaps += (f"no cpuset: {e}",)
            with contextlib.suppress(OSError):
                top.rmdir()
