"""Loop devices, mounts and sparse copies: the system calls of disk images, one small function each.

A loop device goes with its last mount (autoclear).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_AUTOCLEAR: Final = 4
_MS_NOSUID, _MS_NODEV, _MS_NOATIME = 2, 4, 1024
#: The inode tables of a fresh sparse file are zeros; the kernel need not write them in the background.
_OPTIONS: Final = b"noinit_itable"
_MNT_DETACH: Final = 2
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432  # the same on every architecture
_CLOEXEC: Final = 1
_SET_STRING, _CREATE = 1, 6  # enum fsconfig_command
_COPY_CHUNK: Final = 4 << 20
_LOOP_ATTEMPTS: Final = 1000

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: Path) -> None:
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    checked(
        libc.mount(source.encode(), os.fsencode(target), b"ext4", flags, _OPTIONS),
        f"mount {source} on {target}",
    )


def mount_detached(source: str) -> int:
    """A mount that is nowhere but in this descriptor, and goes with it, also when this process is killed."""
    what = f"mount {source}"
    context = checked(libc.syscall(_SYS_FSOPEN, b"ext4", _CLOEXEC), what)
    try:
        for command, key, value in ((_SET_STRING, b"source", source.encode()), (_CREATE, None, None)):
            checked(libc.syscall(_SYS_FSCONFIG, context, command, key, value, 0), what)
        return checked(libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, 0), what)
    finally:
        os.close(context)


def unmount(target: Path) -> None:
    """Detached: who still holds a descriptor keeps the file system until then."""
    if libc.umount2(os.fsencode(target), _MNT_DETACH) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):  # not mounted, not there
            raise OSError(number, os.strerror(number), f"umount {target}")


def _ensure_node(number: int) -> str:
    """/dev/loopN of a /dev without devtmpfs is made by hand."""
    path = f"/dev/loop{number}"
    if not Path(path).exists():
        with suppress(FileExistsError):  # somebody else needs it as well
            os.mknod(path, 0o60660, os.makedev(7, number))
    return path


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """A free loop device with ``image`` on it. It detaches itself with its last user: mount it inside."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    device = -1
    try:
        for attempt in range(_LOOP_ATTEMPTS):
            path = _ensure_node(fcntl.ioctl(control, _LOOP_CTL_GET_FREE))
            try:
                device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                fcntl.ioctl(device, _LOOP_CONFIGURE, _loop_config(backing))
                break
            except OSError as e:
                if device >= 0:
                    os.close(device)
                    device = -1
                # another process may take or remove the number between the two calls
                if e.errno not in (errno.EBUSY, errno.ENXIO, errno.ENODEV) or attempt + 1 == _LOOP_ATTEMPTS:
                    raise OSError(e.errno, e.strerror, f"attach {image} to {path}") from e
        yield path
    finally:
        for fd in (device, control, backing):
            if fd >= 0:
                os.close(fd)


def _loop_config(backing_fd: int) -> bytes:
    """struct loop_config: fd, block_size, struct loop_info64 (its flags at 52), reserved."""
    config = bytearray(304)
    struct.pack_into("=II", config, 0, backing_fd, 0)
    struct.pack_into("=I", config, 8 + 52, _LO_FLAGS_AUTOCLEAR)
    return bytes(config)


def copy_sparse(source: Path, target: Path) -> None:
    """Data by data, hole by hole; the two may be on different file systems. ``target`` must not exist."""
    with source.open("rb", buffering=0) as src, target.open("xb", buffering=0) as dst:
        try:
            os.truncate(dst.fileno(), os.fstat(src.fileno()).st_size)
            for start, end in _extents(src.fileno()):
                at = start
                while at < end:
                    data = os.pread(src.fileno(), min(end - at, _COPY_CHUNK), at)
                    if not data:
                        raise OSError(errno.EIO, "it became shorter", str(source))
                    at += os.pwrite(dst.fileno(), data, at)
        except BaseException:
            target.unlink()
            raise


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file holds data: from, to."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
