"""A process that enters the same jail as the unpacking worker, and then tries what a hostile archive might make the worker do.

`python -I droplets_probe.py TARGET`: prints "in" once it is in the jail, waits for a line, and prints the result of each attempt (the
name of its errno, or what it got). All modules are loaded before it enters the jail, as in the worker.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from agent.droplets import jail

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2, _IO_URING_SETUP, _CLONE3 = 437, 425, 435
_KEYCTL = 250 if platform.machine() == "x86_64" else 219
_FS_IOC_GETFLAGS = 0x80086601


def _c(result: int) -> str:
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]


def _py(attempt: Callable[[], object]) -> str:
    try:
        got = attempt()
    except OSError as e:
        return errno.errorcode[e.errno or 0]
    except MemoryError:
        return "MemoryError"
    return "done" if got is None else str(got)


def _made(name: str, mode: int) -> str:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=_root)
    os.close(fd)
    return "done"


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _attempts() -> dict[str, str]:
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o644, dir_fd=_root)
    os.mkdir("directory", 0o755, dir_fd=_root)
    os.symlink("/file", "link", dir_fd=_root)
    buffer = ctypes.create_string_buffer(256)
    c = _libc
    return {
        # an archive's tricks
        "whiteout": _c(c.mknodat(_root, b"whiteout", 0o020644, 0)),
        "FIFO": _c(c.mknodat(_root, b"fifo", 0o010644, 0)),
        "user attribute": _c(c.fsetxattr(fd, b"user.overlay.opaque", b"y", 1, 0)),
        "trusted attribute": _c(c.setxattr(b"/file", b"trusted.overlay.opaque", b"y", 1, 0)),
        "owner": _c(c.fchown(fd, 0, 0)),
        "mode by name": _c(c.fchmodat(_root, b"file", 0o777, 0)),
        "set-uid by fchmod": _py(lambda: os.fchmod(fd, 0o4755)),
        "sticky by fchmod": _py(lambda: os.fchmod(fd, 0o1755)),
        "set-gid by open": _py(lambda: _made("setgid", 0o2755)),
        "sticky by mkdir": _py(lambda: os.mkdir("sticky", 0o1777, dir_fd=_root)),
        "inode flags": _c(c.ioctl(fd, _FS_IOC_GETFLAGS, buffer)),
        "through a link": _py(lambda: os.open("/link", os.O_RDONLY)),
        "rename": _py(lambda: os.rename("/file", "/other")),
        "truncate by name": _c(c.truncate(b"/file", 0)),
        # a taken-over worker's
        "host's file": _py(lambda: os.open("/etc/passwd", os.O_RDONLY)),
        "above the root": _py(lambda: sorted(os.listdir(os.open("/../..", os.O_RDONLY)))),
        "proc": _py(lambda: os.open("/proc/self/status", os.O_RDONLY)),
        "fork": _py(_fork),
        "clone3": _c(c.syscall(_CLONE3, 0, 0)),
        "exec": _py(lambda: os.execv("/file", ["file"])),
        "socket": _py(lambda: socket.socket(socket.AF_UNIX)),
        "ptrace": _c(c.ptrace(16, os.getppid(), 0, 0)),
        "signal to the parent": _py(lambda: os.kill(int(sys.argv[2]), 0)),
        "mount": _c(c.mount(b"none", b"/directory", b"tmpfs", 0, None)),
        "unshare": _c(c.unshare(0x10000000)),
        "chroot": _py(lambda: os.chroot("/directory")),
        "setuid": _py(lambda: os.setuid(0)),
        "openat2": _c(c.syscall(_OPENAT2, _root, b"file", buffer, 24)),
        "io_uring": _c(c.syscall(_IO_URING_SETUP, 1, buffer)),
        "keyctl": _c(c.syscall(_KEYCTL, 0, 0)),
        "prctl": _c(c.prctl(4, 1, 0, 0, 0)),
        "limits": _c(c.setrlimit(9, buffer)),
        "2 GiB of memory": _py(lambda: len(mmap.mmap(-1, 2 << 30))),
        # a worker's work
        "file with a mode": _py(lambda: _made("plain", 0o700)),
        "directory with a mode": _py(lambda: os.mkdir("d700", 0o700, dir_fd=_root)),
        "fchmod": _py(lambda: os.fchmod(fd, 0o600)),
        "hard link": _py(
            lambda: os.link("file", "hard", src_dir_fd=_root, dst_dir_fd=_root, follow_symlinks=False)
        ),
        "times": _py(lambda: os.utime("link", (1, 1), dir_fd=_root, follow_symlinks=False)),
        "unlink": _py(lambda: os.unlink("file", dir_fd=_root)),
        "room on the disk": _py(lambda: os.fstatvfs(_root).f_frsize > 0),
    }


if __name__ == "__main__":
    _root = jail.enter(Path(sys.argv[1]))
    os.write(1, b"in\n")
    os.read(0, 1)
    os.write(1, json.dumps(_attempts()).encode())
    os._exit(0)
