"""A seccomp profile as a value, compiled to classic BPF. Pure; wshd only installs what comes out.

The profile refuses by name what no app needs (mounting, namespaces, kernel keys, modules, tracing of others,
io_uring, ...), looks at arguments where only some uses are dangerous, and answers ENOSYS for every number above
those known here, so that a new kernel opens nothing by itself and libc falls back. clone3 is ENOSYS too: its flags lie in
memory, and EPERM would break thread creation.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000

#: seccomp(2): offsets in struct seccomp_data.
_NR, _ARCH, _ARGS = 0, 4, 16
_LD, _JEQ, _JGT, _JSET, _RET = 0x20, 0x15, 0x25, 0x45, 0x06
_X32_BIT = 0x40000000

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: name: (x86_64, aarch64); None: the architecture has no such call.
NUMBERS: Mapping[str, tuple[int | None, int | None]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "get_mempolicy": (239, 236),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "listmount": (458, 458),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "set_mempolicy": (238, 237),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "statmount": (457, 457),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
_COLUMN = {"x86_64": 0, "aarch64": 1}

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_ALG, _AF_VSOCK = 38, 40
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Argument:
    """Refuses a call by the low 32 bits of one argument: equal to one of ``equal``, or with a bit of ``bits``.

    With ``invert`` the values of ``equal`` are the only ones allowed.
    """

    index: int
    equal: tuple[int, ...] = ()
    bits: int = 0
    invert: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    refused: Mapping[str, int]  # name: errno
    arguments: Mapping[str, Argument]  # refused with EPERM
    last_known: int


_NOT_THERE = ("clone3", "io_uring_enter", "io_uring_register", "io_uring_setup", "listmount", "statmount")
_BY_ARGUMENT: Mapping[str, Argument] = {
    "clone": Argument(0, bits=_NEW_NAMESPACES),
    "ioctl": Argument(1, equal=(_TIOCSTI, _TIOCLINUX)),
    "personality": Argument(0, equal=_PERSONALITIES, invert=True),
    "socket": Argument(0, equal=(_AF_ALG, _AF_VSOCK)),
}
DEFAULT_PROFILE = Profile(
    refused={
        name: errno.ENOSYS if name in _NOT_THERE else errno.EPERM
        for name in NUMBERS
        if name not in _BY_ARGUMENT
    },
    arguments=_BY_ARGUMENT,
    last_known=462,
)


def statement(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value & 0xFFFFFFFF)


def jump(code: int, value: int, yes: int, no: int) -> bytes:
    assert 0 <= yes <= 255
    assert 0 <= no <= 255
    return struct.pack("=HBBI", code, yes, no, value & 0xFFFFFFFF)


def _refuse(number: int) -> bytes:
    return statement(_RET, ERRNO | number)


def _argument_block(argument: Argument) -> list[bytes]:
    """Runs when the number has matched: loads the argument and ends with ALLOW or EPERM."""
    tests = [(_JEQ, value) for value in argument.equal] + ([(_JSET, argument.bits)] if argument.bits else [])
    first, second = statement(_RET, ALLOW), _refuse(errno.EPERM)
    if argument.invert:
        first, second = second, first
    block = [statement(_LD, _ARGS + 8 * argument.index)]
    for left, (code, value) in zip(range(len(tests) - 1, -1, -1), tests, strict=True):
        block.append(jump(code, value, left + 1, 0))  # a match goes to the last instruction
    return [*block, first, second]


def compile_filter(profile: Profile, arch: str) -> bytes:
    """The filter as an array of struct sock_filter. ``arch`` is that of uname: x86_64 or aarch64 (KeyError else)."""
    column = _COLUMN[arch]
    code = [
        statement(_LD, _ARCH),
        jump(_JEQ, _AUDIT_ARCH[arch], 1, 0),
        statement(_RET, KILL_PROCESS),
        statement(_LD, _NR),
    ]
    if arch == "x86_64":
        code += [jump(_JSET, _X32_BIT, 0, 1), _refuse(errno.ENOSYS)]
    code += [jump(_JGT, profile.last_known, 0, 1), _refuse(errno.ENOSYS)]
    for name, number in sorted(profile.refused.items()):
        at = NUMBERS[name][column]
        if at is not None:
            code += [jump(_JEQ, at, 0, 1), _refuse(number)]
    for name, argument in sorted(profile.arguments.items()):
        at = NUMBERS[name][column]
        if at is not None:
            block = _argument_block(argument)
            code += [jump(_JEQ, at, 0, len(block)), *block]
    code.append(statement(_RET, ALLOW))
    return b"".join(code)
