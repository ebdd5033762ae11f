"""What only one manager may have at a time: its depot, its cgroup parent, the tables of a network namespace.

Two managers that share one of these take the other's containers for remains and its rules for foreign ones, and
undo each other for ever. Each lock goes with the process that has it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from container.host import HostUnfit

#: Abstract, so that no file stays behind; such names belong to a network namespace (unix(7)), as our tables do.
_TABLES: Final = "\0garrison-tables"


class DepotBusy(HostUnfit):
    """Another manager has what this one needs; the text says what."""


def lock_directory(path: Path) -> Callable[[], None]:
    """Returns what lets go."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise DepotBusy(f"{path}: another manager has it open") from None
    return lambda: os.close(fd)


def lock_tables() -> Callable[[], None]:
    """Returns what lets go."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        lock.bind(_TABLES)
        lock.listen()  # so that whoever is refused can ask who has it
    except OSError:
        lock.close()
        raise DepotBusy(
            f"the firewall tables of this network namespace: another manager ({_holder()}) has them"
        ) from None
    return lock.close


def _holder() -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        try:
            asking.connect(_TABLES)
            pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return "gone by now"
    return f"pid {pid}"
