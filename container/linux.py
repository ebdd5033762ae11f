"""System calls that Python 3.11 does not wrap: openat2, statx, inotify, fallocate.

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

_AT_EMPTY_PATH: Final = 0x1000
_STATX_MNT_ID: Final = 0x1000
_STATX_BYTES: Final = 256
_STATX_MNT_ID_AT: Final = 0x90

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


def mount_id(fd: int) -> int:
    """Of the mount that a descriptor (O_PATH too) was opened through; statx(2), Linux 5.8. It is nobody else's as long as
    something holds the mount.
    """
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_MNT_ID, found) != 0:
        raise _fail("statx")
    if not struct.unpack_from("=I", found)[0] & _STATX_MNT_ID:
        raise OSError(95, "the kernel does not tell the mount", "statx")
    return int(struct.unpack_from("=Q", found, _STATX_MNT_ID_AT)[0])


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
