"""cgroup v2: one directory for each container, with ``init`` and ``job`` below it.

Controllers are enabled at each level on the way down. v2 has no file for devices; instead a small eBPF program on each leaf
decides (devices.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from container.cgroups import devices
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
from container.cgroups.detect import V2_NEEDED, Hierarchy
from container.cgroups.figures import Pressure, Throttling, parse_pressure, parse_throttling
from container.cgroups.oom import SharedWatcher
from container.spec import CpuCap

_ENABLE: Final = " ".join(f"+{name}" for name in V2_NEEDED)
_ORDINARY_WEIGHT: Final = 100


def weight_of(shares: int) -> int:
    """The cpu.weight for a number of v1 shares: the same number, cut to the range of v2, so that ratios stay. Pure.

    systemd and runc map differently: everything below 28 shares gets the same weight, and a ratio of 32:1 becomes 10:1.
    """
    return min(max(shares, 1), 10_000)


class CgroupSetV2(CgroupSet):
    """The directory of one container. Each method's contract is in base.py."""

    def __init__(self, parent_dir: Path, name: str, events: SharedWatcher) -> None:
        self.name = name
        self._leaf_paths = leaf_paths(parent_dir.name, name)
        self._events = events
        self._top = parent_dir / name
        self._job = self._top / "job"
        self.init_files = (self._top / "init" / "cgroup.procs",)
        self.job_files = (self._job / "cgroup.procs",)
        self.shown = ("cgroup2",)

    def make(self) -> None:
        self._top.mkdir()
        write(self._top / "cgroup.subtree_control", _ENABLE)
        write(self._top / "cpu.weight", str(ORDINARY_SHARES))
        for leaf in LEAVES:
            (self._top / leaf).mkdir()
            devices.attach(self._top / leaf, DEVICES)

    def exists(self) -> bool:
        return self._top.exists()

    def set_memory(self, limit_bytes: int | None) -> int | None:
        if (self._job / "memory.swap.max").exists():
            write(self._job / "memory.swap.max", "max" if limit_bytes is None else "0")
        write(self._job / "memory.max", "max" if limit_bytes is None else str(limit_bytes))
        return self.memory_limit_bytes()

    def memory_limit_bytes(self) -> int | None:
        word = read(self._job / "memory.max").strip()
        return None if word == "max" else int(word)

    def set_cpu_shares(self, shares: int) -> int:
        write(self._top / "cpu.weight", str(weight_of(shares)))
        return int(read(self._top / "cpu.weight"))

    def _write_cpu_cap(self, cap: CpuCap | None) -> None:
        burst = self._job / "cpu.max.burst"
        if burst.exists():
            write(burst, "0")
        write(self._job / "cpu.max", "max" if cap is None else f"{cap.quota_us} {cap.period_us}")
        if cap is not None and cap.burst_us:
            write(burst, str(cap.burst_us))

    def cpu_cap(self) -> CpuCap | None:
        try:
            quota, period = read(self._job / "cpu.max").split()
        except FileNotFoundError:
            if self._job.exists():
                return None
            raise
        if quota == "max":
            return None
        burst = self._job / "cpu.max.burst"
        return CpuCap(int(quota), int(period), int(read(burst)) if burst.exists() else 0)

    def throttling(self) -> Throttling | None:
        return parse_throttling(key_values(read(self._job / "cpu.stat")))

    def pressure(self) -> Mapping[str, Pressure]:
        found = {}
        for resource in ("cpu", "memory", "io"):
            # absent without CONFIG_PSI; EOPNOTSUPP where it is compiled in and switched off
            with contextlib.suppress(OSError):
                found[resource] = parse_pressure(read(self._job / f"{resource}.pressure"))
        return found

    def take_up(self) -> None:
        write(self._top / "cpu.weight", str(ORDINARY_SHARES))
        write(self._job / "cpu.weight", str(_ORDINARY_WEIGHT))

    def set_pids(self, count: int | None) -> None:
        write(self._job / "pids.max", "max" if count is None else str(count))

    def memory_stat(self) -> Mapping[str, int]:
        return key_values(read(self._job / "memory.stat"))

    def memory_bytes(self) -> int:
        return max(0, int(read(self._job / "memory.current")) - self.memory_stat()["inactive_file"])

    def cpu_ns(self) -> int:
        return key_values(read(self._job / "cpu.stat"))["usage_usec"] * 1000

    def cpu_user_system_ns(self) -> tuple[int, int]:
        stat = key_values(read(self._job / "cpu.stat"))
        return stat["user_usec"] * 1000, stat["system_usec"] * 1000

    def pids(self) -> int:
        return int(read(self._job / "pids.current"))

    def oom_kills(self) -> int:
        return key_values(read(self._job / "memory.events"))["oom_kill"]

    def processes(self) -> tuple[int, ...]:
        found: set[int] = set()
        for leaf in LEAVES:
            with contextlib.suppress(FileNotFoundError):
                found.update(int(word) for word in read(self._top / leaf / "cgroup.procs").split())
        found.discard(0)  # a process of a pid namespace that is not visible here
        return tuple(sorted(found))

    def _is_of_hierarchy(self, controllers: Collection[str]) -> bool:
        return "" in controllers

    def _set_frozen(self, *, frozen: bool) -> None:
        write(self._job / "cgroup.freeze", "1" if frozen else "0")

    def _is_frozen(self) -> bool:
        return key_values(read(self._job / "cgroup.events"))["frozen"] == 1

    def _follow_oom(
        self, loop: asyncio.AbstractEventLoop, on_event: Callable[[], None]
    ) -> Callable[[], None]:
        return self._events.start(self._job / "memory.events", on_event)

    def _kill(self, pids: tuple[int, ...]) -> None:
        """Writes cgroup.kill, which also kills what is forked meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            write(self._top / "cgroup.kill", "1")

    def _directories(self) -> tuple[Path, ...]:
        return (self._top / "init", self._job, self._top)


class CgroupsV2(Cgroups):
    """All cgroups of v2. ``hierarchy``: where it is mounted. All OOM watches share one inotify instance."""

    def __init__(self, hierarchy: Hierarchy, parent: str) -> None:
        self._mount = hierarchy.mounts[""]
        self._events = SharedWatcher()
        super().__init__(parent)

    def _set(self, name: str) -> CgroupSet:
        return CgroupSetV2(self._mount / self.parent, name, self._events)

    def _parents(self) -> tuple[Path, ...]:
        return (self._mount / self.parent,)

    def _make_parents(self) -> None:
        """OSError EBUSY: the mount is not the root of the hierarchy, and processes are in it (cgroups(7))."""
        top = self._mount / self.parent
        write(self._mount / "cgroup.subtree_control", _ENABLE)
        top.mkdir(exist_ok=True)
        write(top / "cgroup.subtree_control", _ENABLE)
