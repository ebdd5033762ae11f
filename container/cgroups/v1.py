"""cgroup v1. cpu, cpuacct, memory and devices through cgroupspy's nodes; pids and freezer, which it lacks, as files
of the same directories. Nodes are made by hand: a `Tree()` walks every cgroup of the host (0.3 s with 1,600).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgroupspy.nodes import Node

from container.cgroups.base import DEVICES, Cgroups, CgroupSet, key_values, read, remove_directory, write
from container.cgroups.detect import V1_NEEDED, Hierarchy

#: What an unlimited memory.limit_in_bytes reads as begins here (page-rounded 2^63).
_NO_LIMIT = 1 << 62
_LEAVES = ("init", "job")
_libc = ctypes.CDLL(None, use_errno=True)


def _node(directory: Path, mount: Path) -> Any:
    """A chain of Nodes from the mount down; the controller's name is that of cgroupspy's first child."""
    parts = [mount.name, *directory.relative_to(mount).parts]
    node = Node(f"{mount.parent}/".encode())
    for part in parts:
        node = Node(part.encode(), node)
    return node


class CgroupSetV1(CgroupSet):
    def __init__(self, mounts: Mapping[str, Path], parent: str, name: str) -> None:
        self.name = name
        self._mounts = mounts
        self._dirs = {controller: mount / parent / name for controller, mount in mounts.items()}
        unique = tuple(dict.fromkeys(self._dirs.values()))  # co-mounted controllers share a directory
        self.init_files = tuple(directory / "init" / "tasks" for directory in unique)
        self.job_files = tuple(directory / "job" / "tasks" for directory in unique)
        self._unique = unique

    def make(self) -> None:
        for directory in self._unique:
            for leaf in _LEAVES:
                (directory / leaf).mkdir(parents=True, exist_ok=True)
        for leaf in _LEAVES:
            devices = self._controller("devices", leaf)
            devices.deny = "a"
            for kind, major, minor, access in DEVICES:
                devices.allow = f"{kind} {major}:{'*' if minor is None else minor} {access}"

    def _leaf(self, controller: str, leaf: str = "job") -> Path:
        return self._dirs[controller] / leaf

    def _controller(self, controller: str, leaf: str = "job") -> Any:
        return _Files(_node(self._leaf(controller, leaf), self._mounts[controller]), controller)

    def set_memory(self, limit_bytes: int | None) -> int | None:
        memory = self._leaf("memory")
        value = str(-1 if limit_bytes is None else limit_bytes)
        files = [memory / "memory.limit_in_bytes"]
        if (memory / "memory.memsw.limit_in_bytes").exists():
            files.append(memory / "memory.memsw.limit_in_bytes")
        now = self.memory_limit_bytes()
        raising = limit_bytes is None or (now is not None and limit_bytes > now)
        # memory may never exceed memory+swap, so their order depends on the direction (Warden A.4)
        for path in reversed(files) if raising else files:
            write(path, value)
        return self.memory_limit_bytes()

    def memory_limit_bytes(self) -> int | None:
        limit = self._controller("memory").limit_in_bytes
        return None if limit is None or limit >= _NO_LIMIT else int(limit)

    def set_cpu_shares(self, shares: int) -> int:
        cpu = self._controller("cpu")
        cpu.shares = max(2, shares)
        return int(cpu.shares)

    def set_pids(self, count: int | None) -> None:
        write(self._leaf("pids") / "pids.max", "max" if count is None else str(count))

    def memory_stat(self) -> Mapping[str, int]:
        return key_values(read(self._leaf("memory") / "memory.stat"))

    def memory_bytes(self) -> int:
        stat = self.memory_stat()
        return max(0, stat["total_rss"] + stat["total_cache"] - stat["total_inactive_file"])

    def cpu_ns(self) -> int:
        return int(self._controller("cpuacct").usage)

    def cpu_user_system_ns(self) -> tuple[int, int]:
        ticks = key_values(read(self._leaf("cpuacct") / "cpuacct.stat"))
        tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        return ticks["user"] * tick_ns, ticks["system"] * tick_ns

    def pids(self) -> int:
        return int(read(self._leaf("pids") / "pids.current"))

    def oom_kills(self) -> int:
        return key_values(read(self._leaf("memory") / "memory.oom_control")).get("oom_kill", 0)

    def freeze(self) -> None:
        write(self._leaf("freezer") / "freezer.state", "FROZEN")

    def thaw(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            write(self._leaf("freezer") / "freezer.state", "THAWED")

    def _oom_fd(self) -> int:
        memory = self._leaf("memory")
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            control = os.open(memory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                write(memory / "cgroup.event_control", f"{event} {control}")
            finally:
                os.close(control)
        except BaseException:
            os.close(event)
            raise
        return event

    def processes(self) -> tuple[int, ...]:
        found: set[int] = set()
        for directory in self._unique:
            for leaf in _LEAVES:
                with contextlib.suppress(OSError):
                    found.update(int(word) for word in read(directory / leaf / "cgroup.procs").split())
        found.discard(0)
        return tuple(sorted(found))

    def _directories(self) -> tuple[Path, ...]:
        return tuple(path for top in self._unique for path in (top / "init", top / "job", top))

    def exists(self) -> bool:
        return any(directory.exists() for directory in self._unique)


class _Files:
    """Attributes of a cgroupspy controller, with bytes paths kept inside and missing files as OSError."""

    def __init__(self, node: Any, controller: str) -> None:
        from cgroupspy import controllers

        kinds = {
            "cpu": controllers.CpuController,
            "cpuacct": controllers.CpuAcctController,
            "memory": controllers.MemoryController,
            "devices": controllers.DevicesController,
        }
        object.__setattr__(self, "_controller", kinds[controller](node))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("deny", "allow"):  # cgroupspy parses these on the way; the kernel's own form is plainer
            path = Path(os.fsdecode(self._controller.node.full_path)) / f"devices.{name}"
            write(path, value)
        else:
            setattr(self._controller, name, value)


class CgroupsV1(Cgroups):
    def __init__(self, hierarchy: Hierarchy, parent: str) -> None:
        self.parent = parent
        self._mounts = {name: hierarchy.mounts[name] for name in V1_NEEDED}
        for mount in self._parents():
            mount.mkdir(exist_ok=True)

    def _parents(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(mount / self.parent for mount in self._mounts.values()))

    def create(self, name: str) -> CgroupSet:
        made = CgroupSetV1(self._mounts, self.parent, name)
        try:
            made.make()
        except BaseException:
            made.destroy()
            raise
        return made

    def find(self, name: str) -> CgroupSet | None:
        found = CgroupSetV1(self._mounts, self.parent, name)
        return found if found.exists() else None

    def list(self) -> tuple[str, ...]:
        names = {
            entry.name for top in self._parents() if top.exists() for entry in top.iterdir() if entry.is_dir()
        }
        return tuple(sorted(names))

    def remove_parents(self) -> None:
        for top in self._parents():
            with contextlib.suppress(OSError):
                remove_directory(top) if not any(e.is_dir() for e in top.iterdir()) else None
