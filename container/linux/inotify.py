"""inotify(7). The rest of the library uses it through `FileWatcher` of aio.py."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

from container.linux.calls import checked, libc

IN_MODIFY: Final = 0x2
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000

_EVENT: Final = struct.Struct("iIII")
_READ_BYTES: Final = 1 << 16


def inotify_open() -> int:
    """A new inotify instance: close-on-exec, never blocking. OSError EMFILE: the user has too many (128 by default)."""
    return checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")


def inotify_add(fd: int, path: str, mask: int) -> int:
    """Adds a watch and returns its number. The same file always gets the same number. OSError."""
    return checked(libc.inotify_add_watch(fd, os.fsencode(path), mask), path)


def inotify_remove(fd: int, watch: int) -> None:
    """Removes a watch. Idempotent: the kernel drops the watch itself when the file is removed."""
    libc.inotify_rm_watch(fd, watch)


def inotify_events(fd: int) -> Iterator[tuple[int, int]]:
    """(watch, mask) of everything that is queued now."""
    try:
        data = os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return
    at = 0
    while at < len(data):
        watch, mask, _, name_bytes = _EVENT.unpack_from(data, at)
        at += _EVENT.size + name_bytes
        yield watch, mask
