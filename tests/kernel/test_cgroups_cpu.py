"""The hard limit of processor time, and pressure: the contract of both cgroup versions (test_cgroups_contract.py has the rest)."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import pytest
from cgroups_kit import Inside, backend, box, idle, spin

from container import CpuCap
from container.cgroups import CgroupSet, Version, host_hierarchy

__all__ = ["backend", "box"]  # fixtures by import

pytestmark = pytest.mark.kernel


def test_the_hard_limit_of_cpu_changes_both_ways_and_goes(box: CgroupSet) -> None:
    """Live, with a burst and without, and told as the kernel took it. A quota below the former burst is no obstacle."""
    child = Inside(box, idle)
    caps = [
        CpuCap(50_000),
        CpuCap(200_000, 50_000, 100_000),
        CpuCap(10_000, 20_000),
        CpuCap(10_000, 100_000, 10_000),
        CpuCap(1000, 1000),
        None,
        CpuCap(30_000, 1_000_000),
    ]
    assert [box.set_cpu_cap(cap) for cap in caps] == caps
    assert box.cpu_cap() == caps[-1]
    box.kill_all()
    child.wait()


def test_a_hard_limit_slows_and_is_counted(box: CgroupSet) -> None:
    """A tenth of a processor, whatever the host has free; without the limit as much as there is."""

    def spin_s(wall_s: float) -> float:
        before = box.cpu_ns()
        time.sleep(wall_s)
        return (box.cpu_ns() - before) / 1e9

    before = box.throttling()
    assert before is not None
    assert before.throttled_periods == 0
    box.set_cpu_cap(CpuCap(5_000, 50_000))
    child = Inside(box, spin)
    assert spin_s(2.0) <= 0.4  # 0.2 and what the accounting of one period is late
    after = box.throttling()
    assert after is not None
    assert after.throttled_periods >= 10
    assert after.throttled_ns > 0
    box.set_cpu_cap(None)
    free_s = spin_s(1.0)
    box.set_cpu_cap(CpuCap(5_000, 50_000))
    assert spin_s(1.0) < free_s
    box.kill_all()
    child.wait()


def test_a_hard_limit_that_the_kernel_refuses_leaves_the_former(
    box: CgroupSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a kernel that lacks the burst; the text says what is missing."""
    former = CpuCap(20_000, 40_000)
    box.set_cpu_cap(former)
    module = "container.cgroups.v1" if host_hierarchy().version is Version.V1 else "container.cgroups.v2"
    real = importlib.import_module(module).write

    def lacks(path: Path, value: str) -> None:
        if "burst" in path.name and value != "0":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        real(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.write", lacks)
        with pytest.raises(OSError, match=r"no burst \(Linux 5.14\)"):
            box.set_cpu_cap(CpuCap(50_000, 100_000, 10_000))
    assert box.cpu_cap() == former


def test_pressure_is_told_where_the_kernel_counts_it(box: CgroupSet) -> None:
    """Of each cgroup only v2 does."""
    found = box.pressure()
    if host_hierarchy().version is Version.V1:
        assert found == {}
    else:
        assert set(found) <= {"cpu", "memory", "io"}
        assert all(one.some_us >= 0 for one in found.values())
