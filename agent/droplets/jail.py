"""The jail of the unpacking worker: even a worker that an archive has taken over can only write plain files in its target.

The worker enters the jail while it is single-threaded and before it reads a byte of the archive. `enter` does the following:

- It creates namespaces of its own and changes to a host id that nothing else uses.
- It makes an idmapped clone of the target directory (nosuid, nodev, noexec, nosymfollow), in which that id owns what has vcap's id
  on disk, and changes its root into the clone.
- It gives up all capabilities and limits its memory.
- It installs a seccomp filter that permits only the system calls of a Python that writes files.

These are two of three defences; the third is that writer.py has no call for anything but plain files, directories and links
(docs/droplets.md, "Unpacking").

From `container` only the system calls are imported (`container.linux`), since importing the network library would cost a quarter of
a second for each droplet.
"""

from __future__ import annotations

import errno
import os
import platform
import resource
import signal
import struct
from pathlib import Path

from container import linux
from wsh.vcap import VCAP_ID

#: The worker's id on the host: below the ids of containers (setting user.pool_start_uid), above the ids of users.
WORKER_ID = 999_934_463
VCAP = VCAP_ID
MEMORY_BYTES = 1 << 30

#: Allowed calls and their numbers on (x86_64, aarch64). Every other call fails with EPERM.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "pread64": (17, 67),
    "dup": (32, 23),
    "fcntl": (72, 25),
    "ftruncate": (77, 46),
    "getdents64": (217, 61),
    "fstatfs": (138, 44),
    "futex": (202, 98),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "clock_gettime": (228, 113),
    "getrandom": (318, 278),
    "unlinkat": (263, 35),
    "symlinkat": (266, 36),
    "linkat": (265, 37),
    "utimensat": (280, 88),
}
#: Allowed calls with a mode: their numbers, and the position of the argument whose set-uid, set-gid and sticky bits must be zero.
_WITH_MODE: dict[str, tuple[int, int, int]] = {
    "openat": (257, 56, 3),
    "mkdirat": (258, 34, 2),
    "fchmod": (91, 52, 1),
}
#: Return values of seccomp(2), and operations of classic BPF.
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LD, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06


def statement(code: int, value: int) -> bytes:
    return jump(code, value, 0, 0)


def jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    """One `struct sock_filter`. The jumps are counts of instructions to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def make_filter(arch: str) -> bytes:
    """The allow-list as a classic BPF program. Pure. Raises KeyError for an architecture without a table."""
    column = 0 if arch == "x86_64" else 1
    code = [
        statement(_LD, 4),
        jump(_JEQ, _AUDIT_ARCH[arch], 1, 0),
        statement(_RET, KILL_PROCESS),
        statement(_LD, 0),
    ]
    for numbers in _ALLOWED.values():
        number = numbers[column]
        if number is not None:
            code += [jump(_JEQ, number, 0, 1), statement(_RET, ALLOW)]
    for *numbers_of_mode, argument in _WITH_MODE.values():
        code += [
            jump(_JEQ, numbers_of_mode[column], 0, 4),
            statement(_LD, 16 + 8 * argument),
            jump(_JSET, 0o7000, 0, 1),
            statement(_RET, ERRNO | errno.EPERM),
            statement(_RET, ALLOW),
        ]
    code.append(statement(_RET, ERRNO | errno.EPERM))
    return b"".join(code)


def _idmap_namespace() -> int:
    """A descriptor of a user namespace that maps vcap's id on disk to the worker's id."""
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 0
        try:
            linux.unshare(linux.CLONE_NEWUSER)
        except OSError:
            status = 1
        os.write(ready_write, bytes([status]))
        os.close(done_write)
        os.read(done_read, 1)
        os._exit(status)
    try:
        os.close(ready_write)
        if os.read(ready_read, 1) != b"\0":
            raise OSError(errno.EPERM, "unshare", "user namespace")
        for which in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{which}").write_text(f"{VCAP} {WORKER_ID} 1\n")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(done_write)
        os.close(ready_read)
        os.close(done_read)
        os.waitpid(child, 0)


def _clone_of(target: Path) -> int:
    """A descriptor of a detached, idmapped mount of the directory."""
    clone = linux.clone_mount(target)
    namespace = _idmap_namespace()
    try:
        flags = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC
        flags |= linux.MOUNT_ATTR_NOSYMFOLLOW | linux.MOUNT_ATTR_IDMAP
        linux.set_mount_attributes(clone, flags, user_namespace_fd=namespace)
    finally:
        os.close(namespace)
    return clone


def enter(target: Path) -> int:
    """Confines this process to ``target``, which vcap's id owns, for good. Returns a descriptor of the new root. Raises OSError.

    The worker is killed when its parent ends, so that it cannot write into a tree that the next agent has thrown away.
    """
    parent = os.getppid()
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
    clone = _clone_of(target)
    os.setgroups([])
    os.setresgid(WORKER_ID, WORKER_ID, WORKER_ID)
    os.setresuid(WORKER_ID, WORKER_ID, WORKER_ID)
    linux.set_dumpable(dumpable=True)  # else root owns /proc/self, and the id maps could not be written
    linux.unshare(linux.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    for which in ("uid_map", "gid_map"):
        Path(f"/proc/self/{which}").write_text(f"{WORKER_ID} {WORKER_ID} 1\n")
    os.fchdir(clone)
    os.chroot(".")
    os.close(clone)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    os.umask(0)
    _drop_rights()
    # prctl(2): a change of ids clears this setting, so it comes after them; if the parent has ended already, no signal comes
    linux.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), "the agent")
    linux.install_filter(make_filter(platform.machine()))
    return root


def _drop_rights() -> None:
    linux.drop_bounding_set()
    linux.drop_capabilities()
    linux.set_no_new_privileges()
    linux.set_dumpable(dumpable=False)
