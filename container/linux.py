"""System calls that Python 3.11 does not wrap: openat2, inotify, fallocate.

Thin: each function is one call, raises OSError with the path, and decides nothing.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

SYS_OPENAT2: Final = 437  # the same on every architecture
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

IN_MODIFY: Final = 0x2
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000

FALLOC_FL_KEEP_SIZE: Final = 0x1

_EVENT = struct.Struct("iIII")


def _fail(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def openat2(dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int) -> int:
    """openat2(2); the descriptor is close-on-exec. EAGAIN (a rename raced with ``..``) is tried again."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(64):
        fd = _libc.syscall(SYS_OPENAT2, dir_fd, os.fsencode(path), how, ctypes.c_size_t(len(how)))
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() not in (11, 4):
            break
    raise _fail(path)


def preallocate(fd: int, size_bytes: int) -> None:
    """Reserve blocks without a change of size, so that a later write cannot meet a full disk."""
    if _libc.fallocate(fd, FALLOC_FL_KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(size_bytes)) != 0:
        raise _fail("fallocate")


def inotify_open() -> int:
    fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise _fail("inotify_init1")
    return int(fd)


def inotify_add(fd: int, path: str, mask: int) -> int:
    watch = _libc.inotify_add_watch(fd, os.fsencode(path), mask)
    if watch < 0:
        raise _fail(path)
    return int(watch)


def inotify_remove(fd: int, watch: int) -> None:
    """Idempotent: the kernel has dropped the watch already when the file is gone."""
    _libc.inotify_rm_watch(fd, watch)


def inotify_events(fd: int) -> Iterator[tuple[int, int]]:
    """(watch, mask) of everything that is queued now."""
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        return
    at = 0
    while at < len(data):
        watch, mask, _, name_bytes = _EVENT.unpack_from(data, at)
        at += _EVENT.size + name_bytes
        yield watch, mask
