"""The jail of the unpacking worker. It is the second of three barriers; the first is writer.py's small set of calls, the third the
seccomp filter below.

The worker enters it while it has one thread, before it reads anything of the archive. It gets namespaces of its own; a host id that
nothing else has, mapped to vcap's number on disk by an idmapped clone of the target directory (nosuid, nodev, noexec, nosymfollow);
a chroot into that clone; no capabilities; a memory limit; and a filter that permits only the system calls of a Python that writes
files.

Of `container` it imports only the system calls (`container.linux`, on the standard library). Importing the network library would
take a quarter of a second for each droplet.
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

#: The worker's id on the host. Below the ids of containers (config: user.pool_start_uid), above those of people.
WORKER_ID = 999_934_463
VCAP = VCAP_ID
MEMORY_BYTES = 1 << 30

#: Allowed calls: (x86_64, aarch64). Whatever else a library tries is answered EPERM.
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
#: Calls with a mode: the argument whose set-uid, set-gid and sticky bits must be zero.
_WITH_MODE: dict[str, tuple[int, int, int]] = {
    "openat": (257, 56, 3),
    "mkdirat": (258, 34, 2),
    "fchmod": (91, 52, 1),
}
#: seccomp(2), bpf: verdicts, and the operations that the filter is made of.
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LD, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06


def statement(code: int, value: int) -> bytes:
    return jump(code, value, 0, 0)


def jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    """A struct sock_filter."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def make_filter(arch: str) -> bytes:
    """The allow-list as classic BPF. Pure. KeyError: an architecture without a table."""
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
    """Opens a user namespace in which vcap's number on disk is the worker's id. Returns its descriptor."""
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
    """Confines the worker to ``target``, which belongs to vcap's number. Returns a descriptor of the root. It cannot be undone.

    The worker is killed when its parent ends, so that nothing writes into a tree that the next agent has thrown away.
    """
    parent = os.getppid()
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
    clone = _clone_of(target)
    os.setgroups([])
    os.setresgid(WORKER_ID, WORKER_ID, WORKER_ID)
    os.setresuid(WORKER_ID, WORKER_ID, WORKER_ID)
    linux.set_dumpable(dumpable=True)  # else /proc/self is root's
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
    # prctl(2): forgotten at each change of ids, so only now; who is an orphan already gets no signal
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
