"""Freezing and removing a cgroup set, on both back ends. Runs on the hierarchy that this kernel has: v1 or v2 (`make vm-test`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from cgroups_kit import Inside, backend, bomb, box, eat, idle, spin, until

from container.cgroups import CgroupSet

__all__ = ["backend", "box"]  # fixtures by import
pytestmark = pytest.mark.kernel

MIB = 1 << 20


def test_a_frozen_job_stands_still_and_goes_on(box: CgroupSet) -> None:
    """No nanosecond is used between freeze and thaw."""
    child = Inside(box, spin)
    until(lambda: box.cpu_ns() > 0)

    box.freeze()
    first = box.cpu_ns()
    time.sleep(0.1)
    assert box.cpu_ns() == first

    box.thaw()
    box.thaw()
    until(lambda: box.cpu_ns() > first)
    box.kill_all()
    assert child.wait() == -signal.SIGKILL


def test_kill_all_ends_frozen_processes_and_those_of_init(box: CgroupSet) -> None:
    """Nothing hides: not in the other leaf, not in the freezer."""
    frozen = Inside(box, idle)
    box.freeze()
    beside = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    for path in box.init_files:
        path.write_text(str(beside.pid))
    assert set(box.processes()) == {frozen.pid, beside.pid}

    box.kill_all()

    assert box.processes() == ()
    assert frozen.wait() == beside.wait() == -signal.SIGKILL


def test_no_fork_bomb_outruns_kill_all(box: CgroupSet) -> None:
    """Two hundred processes that do nothing but fork; the set is empty afterwards and can be removed."""
    box.set_pids(200)
    child = Inside(box, bomb)
    until(lambda: box.pids() >= 150)

    box.kill_all()

    assert box.processes() == ()
    assert child.wait() == -signal.SIGKILL
    box.destroy()
    assert not box.exists()


def test_destroy_waits_for_the_last_process(box: CgroupSet) -> None:
    """The kernel says EBUSY until the dying are gone: that is no error."""

    def hold() -> None:
        held = eat(2 * MIB)
        idle()
        held.close()

    children = [Inside(box, hold) for _ in range(20)]
    for child in children:
        os.kill(child.pid, signal.SIGKILL)

    box.destroy()

    assert not box.exists()
    assert {child.wait() for child in children} == {-signal.SIGKILL}


def test_a_process_that_stays_is_said_and_not_harmed(box: CgroupSet) -> None:
    """The error names the directory; the set can still be found and ended."""
    child = Inside(box, idle)

    with pytest.raises(OSError, match="job") as refused:
        box.destroy(timeout_s=0.01)

    assert refused.value.errno == 16  # EBUSY
    assert box.exists()
    assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)
    box.kill_all()
    child.wait()
