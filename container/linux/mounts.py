"""mount(2), umount2(2), and the calls that handle a mount by its descriptor (fsopen(2), open_tree(2), mount_setattr(2))."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Final

from container.linux.calls import checked, libc, oserror

MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOATIME: Final = 1024
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000

_MNT_DETACH: Final = 2
# Call numbers from 424 on are the same on every architecture.
_SYS_OPEN_TREE, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_MOUNT_SETATTR = 428, 430, 431, 432, 442
_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_SET_STRING, _CREATE = 1, 6  # enum fsconfig_command
_OPEN_TREE_CLONE: Final = 1
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000


def mount(source: str, target: Path, file_system: str, flags: int, options: str = "") -> None:
    """Mounts a file system. OSError: the kernel refused; the error names both paths."""
    checked(
        libc.mount(source.encode(), os.fsencode(target), file_system.encode(), flags, options.encode()),
        f"mount {source} on {target}",
    )


def mount_detached(source: str, file_system: str) -> int:
    """A descriptor of a mount that is attached nowhere. The mount ends when it is closed, also by the end of the process."""
    what = f"mount {source}"
    context = checked(libc.syscall(_SYS_FSOPEN, file_system.encode(), _CLOEXEC), what)
    try:
        for command, key, value in ((_SET_STRING, b"source", source.encode()), (_CREATE, None, None)):
            checked(libc.syscall(_SYS_FSCONFIG, context, command, key, value, 0), what)
        return checked(libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, 0), what)
    finally:
        os.close(context)


def unmount(target: Path) -> None:
    """Unmounts lazily: open descriptors keep the file system alive. It is no error if nothing is mounted. OSError."""
    if libc.umount2(os.fsencode(target), _MNT_DETACH) != 0 and ctypes.get_errno() not in (
        errno.EINVAL,  # not mounted
        errno.ENOENT,
    ):
        raise oserror(f"umount {target}")


def clone_mount(target: Path) -> int:
    """A descriptor of a clone of the mount at ``target``, from that directory down."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return checked(libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(target), flags), f"open_tree {target}")


def set_mount_attributes(mount_fd: int, attributes: int, *, user_namespace_fd: int = 0) -> None:
    """Adds attributes to a mount. MOUNT_ATTR_IDMAP maps ids as ``user_namespace_fd`` does. OSError."""
    packed = struct.pack("=QQQQ", attributes, 0, 0, user_namespace_fd)
    size = ctypes.c_size_t(len(packed))
    checked(libc.syscall(_SYS_MOUNT_SETATTR, mount_fd, b"", _AT_EMPTY_PATH, packed, size), "mount_setattr")
