"""inotify(7). aio.py's `FileWatcher` is what the rest of the library uses."""

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
    """The number of the watch; the same file has the same number. OSError."""
    return checked(libc.inotify_add_watch(fd, os.fsencode(path), mask), path)


def inotify_remove(fd: int, watch: int) -> None:
    """Idempotent: the kernel has dropped the watch already when the file is gone."""
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
