"""openat2(2), statx(2), fallocate(2), syncfs(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

from container.linux.calls import checked, libc, oserror

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

_SYS_OPENAT2: Final = 437  # the same on every architecture
_OPENAT2_ATTEMPTS: Final = 64
_FALLOC_FL_KEEP_SIZE: Final = 0x1
_AT_EMPTY_PATH: Final = 0x1000
_STATX_MNT_ID: Final = 0x1000
_STATX_BYTES: Final = 256
_STATX_MNT_ID_AT: Final = 0x90


def openat2(dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int) -> int:
    """Opens a path with close-on-exec. EAGAIN (a rename raced with ``..``) and EINTR are tried again. OSError."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_OPENAT2_ATTEMPTS):
        fd = libc.syscall(_SYS_OPENAT2, dir_fd, os.fsencode(path), how, ctypes.c_size_t(len(how)))
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    raise oserror(path)


def mount_id(fd: int) -> int:
    """The id of the mount through which a descriptor was opened, also an O_PATH one (Linux 5.8). OSError.

    No other mount gets the same id as long as something holds this one.
    """
    found = ctypes.create_string_buffer(_STATX_BYTES)
    checked(libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_MNT_ID, found), "statx")
    if not struct.unpack_from("=I", found)[0] & _STATX_MNT_ID:
        raise OSError(errno.EOPNOTSUPP, "the kernel does not report the mount id", "statx")
    return int(struct.unpack_from("=Q", found, _STATX_MNT_ID_AT)[0])


def preallocate(fd: int, size_bytes: int) -> None:
    """Reserves blocks without a change of the size, so that a later write cannot fail on a full disk. OSError."""
    size = ctypes.c_long(size_bytes)
    checked(libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_long(0), size), "fallocate")


def sync_file_system(fd: int, what: str) -> None:
    """Writes the file system of ``fd`` to its disk. OSError: some of it was lost; the error names ``what``."""
    checked(libc.syncfs(fd), f"syncfs of {what}")
