"""Processes of a container that others have moved out of its cgroups: found, and put back.

cgroup v1 reports no move, so the processes are looked at: pid 1 and its descendants, with the kernel's list of each process's
children. The file /proc/PID/cgroup names the process's cgroup in each hierarchy.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from container.cgroups.base import CgroupSet

#: Of one container in one walk; the rest of a larger one is not looked at.
MOST_PROCESSES: Final = 512
_EXITING: Final = 0x4  # PF_EXITING; a process that exits is in no cgroup of v1 any more
_FLAGS_AFTER_NAME: Final = 6  # the ninth field of stat; the name, which ends with the last ")", is the second
_READ_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Stray:
    """A process outside of its container's cgroups. ``parent`` 0: it is pid 1 of the container."""

    pid: int
    parent: int


def is_inside(cgroup: CgroupSet, pid: int, known: set[bytes]) -> bool:
    """Whether a process is in the container's cgroups, or ends just now. ``known``: texts that were right before."""
    text = _read(pid, "cgroup")
    if text in known:
        return True
    if not text or not cgroup.holds(text.decode(errors="replace")):
        return not text or is_exiting(pid)
    known.add(text)
    return True


def walk(cgroup: CgroupSet, pid_1: int, known: set[bytes]) -> Iterator[Stray | None]:
    """One step a process: None, or the stray that it is."""
    waiting = deque([Stray(pid_1, 0)])
    for _ in range(MOST_PROCESSES):
        if not waiting:
            return
        one = waiting.popleft()
        yield None if is_inside(cgroup, one.pid, known) else one
        waiting.extend(Stray(child, one.pid) for child in children(one.pid))


def children(pid: int) -> list[int]:
    """The host pids of a process's children. Empty also if it has ended, or the kernel keeps no such list."""
    return [int(word) for word in _read(pid, f"task/{pid}/children").split()]


def put_back(cgroup: CgroupSet, stray: Stray) -> None:
    """Moves a stray to the leaf where it belongs. A process that has ended meanwhile is none any more.

    FileNotFoundError: the cgroups were removed. OSError: the kernel refused.
    """
    try:
        pidfd = os.pidfd_open(stray.pid)
    except ProcessLookupError:
        return
    try:
        # The number may have been given to a stranger since it was read; with the pidfd it keeps its owner.
        if stray.parent and stray.pid not in children(stray.parent):
            return
        cgroup.put_back(stray.pid, "job" if stray.parent else "init")
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def is_exiting(pid: int) -> bool:
    """Whether a process ends just now, or has ended."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return len(fields) <= _FLAGS_AFTER_NAME or bool(int(fields[_FLAGS_AFTER_NAME]) & _EXITING)


def _read(pid: int, name: str) -> bytes:
    """Empty: the process has ended."""
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _READ_BYTES)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return b""
