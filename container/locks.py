"""Locks on what only one manager may use: a depot, a cgroup parent, firewall tables.

If two managers share one of these, each takes the other's containers for remains and the other's rules for foreign changes,
and removes them again and again. The kernel frees a lock when its process ends, however it ends.
(claims.py compares the rest; docs/network.md, "Several managers in one network namespace")
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from container.defaults import TABLE
from container.host import HostUnfit

#: An abstract name: it leaves no file, and like a firewall it belongs to one network namespace (unix(7)).
_TABLES: Final = "\0garrison-tables"


def _name_of(table: str) -> str:
    """Of the default table it is the name that releases without a choice of tables lock."""
    return _TABLES if table == TABLE else f"{_TABLES}-{table}"


class DepotBusy(HostUnfit):
    """Another manager has locked what this one needs; the text names it."""


def lock_directory(path: Path) -> Callable[[], None]:
    """Locks a directory. Returns the function that unlocks it. DepotBusy; OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise DepotBusy(f"{path}: another manager has it open") from None
    return lambda: os.close(fd)


def lock_tables(table: str) -> Callable[[], None]:
    """Locks firewall tables of this network namespace, by their name. Returns the function that unlocks them.

    DepotBusy: it names the other's pid.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        lock.bind(_name_of(table))
        lock.listen()  # a manager that is refused connects, to learn the pid
    except OSError:
        lock.close()
        raise DepotBusy(
            f"the firewall tables {table} of this network namespace: another manager ({_holder(table)}) has locked them"
        ) from None
    return lock.close


def _holder(table: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        try:
            asking.connect(_name_of(table))
            pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return "which has ended meanwhile"
    return f"pid {pid}"
