"""A seccomp profile as a value, compiled to classic BPF. Pure; wshd only installs what comes out.

The profile refuses by name what no program inside needs (mounting, namespaces, kernel keys, modules, io_uring, ...), looks at arguments
where only some uses are dangerous, and answers ENOSYS for every number above those known here, so that a new kernel opens
nothing by itself and libc falls back. docs/seccomp.md has each decision beside Docker's and containerd's.

One profile holds for every table that a kernel answers by: a 32-bit program's calls have other numbers, and a 64-bit program can
make them too.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from container.syscalls import AUDIT_ARCH, NUMBERS, OF_MACHINE, PRIVATE, number

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000

#: seccomp(2): offsets in struct seccomp_data.
_NR, _ARCH, _ARGS = 0, 4, 16
_LD, _JA, _JEQ, _JGT, _JSET, _RET = 0x20, 0x05, 0x15, 0x25, 0x45, 0x06
_X32_BIT = 0x40000000

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


#: Programs have another way when these are not there: of clone3 the flags, of socketcall the family lie in memory, where no
#: filter sees them, and EPERM in place of ENOSYS would be taken for an answer.
_NOT_THERE = (
    *("clone3", "socketcall"),
    *("io_uring_enter", "io_uring_register", "io_uring_setup", "listmount", "statmount"),
)
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


def _table(profile: Profile, table: str) -> list[bytes]:
    """All that is said of one table; begins with the number loaded, and ends with a verdict."""
    code: list[bytes] = []
    if table == "x86_64":
        code += [jump(_JSET, _X32_BIT, 0, 1), _refuse(errno.ENOSYS)]
    for private in PRIVATE.get(table, ()):
        code += [jump(_JEQ, private, 0, 1), statement(_RET, ALLOW)]
    code += [jump(_JGT, profile.last_known, 0, 1), _refuse(errno.ENOSYS)]
    for name, error in sorted(profile.refused.items()):
        at = number(name, table)
        if at is not None:
            code += [jump(_JEQ, at, 0, 1), _refuse(error)]
    for name, argument in sorted(profile.arguments.items()):
        at = number(name, table)
        if at is not None:
            block = _argument_block(argument)
            code += [jump(_JEQ, at, 0, len(block)), *block]
    return [*code, statement(_RET, ALLOW)]


def compile_filter(profile: Profile, arch: str) -> bytes:
    """The filter as an array of struct sock_filter. ``arch`` is that of uname: x86_64 or aarch64 (KeyError else)."""
    code = [statement(_LD, _ARCH)]
    for table in OF_MACHINE[arch]:
        block = [statement(_LD, _NR), *_table(profile, table)]
        # a conditional jump reaches 255 instructions only
        code += [jump(_JEQ, AUDIT_ARCH[table], 1, 0), statement(_JA, len(block)), *block]
    return b"".join((*code, statement(_RET, KILL_PROCESS)))
