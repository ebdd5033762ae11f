"""What a process or thread does to itself: prctl(2), unshare(2), capset(2), seccomp(2)."""

from __future__ import annotations

import ctypes
import platform
import struct
from typing import Final

from container.linux.calls import checked, libc

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_SECCOMP = 1, 4, 15, 22
_PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 24, 36, 38
_SECCOMP_MODE_FILTER: Final = 2
_SYS_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITIES: Final = 64  # more than any kernel has


def _prctl(option: int, value: int | bytes, what: str) -> None:
    checked(libc.prctl(option, value, 0, 0, 0), what)


def unshare(flags: int) -> None:
    """Moves the caller into new namespaces. OSError."""
    checked(libc.unshare(flags), "unshare")


def name_thread(name: str) -> None:
    """Names the calling thread; the kernel keeps 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode(), "thread name")


def die_with_parent(signal_number: int) -> None:
    """The caller gets this signal when the thread that started it ends. The kernel resets this at a change of ids."""
    _prctl(_PR_SET_PDEATHSIG, signal_number, "parent death signal")


def become_subreaper() -> None:
    """A descendant that loses its parent becomes a child of the caller."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "subreaper")


def set_dumpable(*, dumpable: bool) -> None:
    """Sets whether the caller may be traced, and whether it owns its entries in /proc."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable), "dumpable")


def set_no_new_privileges() -> None:
    """No program that the caller executes can gain privileges. This cannot be undone."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")


def drop_bounding_set() -> None:
    """No program that the caller executes can gain a capability."""
    for capability in range(_CAPABILITIES):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # past the last one that this kernel has


def drop_capabilities() -> None:
    """Empties the effective, permitted and inheritable sets. OSError; KeyError: an unknown architecture."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    checked(libc.syscall(_SYS_CAPSET[platform.machine()], header, bytes(24)), "capset")


def install_filter(code: bytes) -> None:
    """Installs a seccomp filter (classic BPF) for the calling thread. OSError: also without no_new_privs or CAP_SYS_ADMIN."""
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    checked(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")
