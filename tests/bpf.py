"""A small interpreter of classic BPF. It runs a seccomp filter on a system call, as the kernel would (seccomp(2))."""

from __future__ import annotations

import struct
from typing import Final

#: AUDIT_ARCH values by the machine's name as uname prints it.
ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: AUDIT_ARCH values of the 32-bit programs that those kernels run too.
COMPAT: Final = {"i386": 0x40000003, "arm": 0x40000028}

_BYTES: Final = 64  # struct seccomp_data: number, architecture, instruction pointer, six arguments


def verdict(code: bytes, arch: int, number: int, *arguments: int) -> int:
    """The filter's return value. AssertionError: the kernel would refuse the filter, or an operation is not implemented here."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("=HBBI", code))
    at = accumulator = 0
    while True:
        assert at < len(steps), "the filter runs off its end"
        operation, if_true, if_false, value = steps[at]
        at += 1
        match operation:
            case 0x20:
                assert value % 4 == 0
                assert value < _BYTES, f"load beyond the data: {value}"
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x05:
                at += value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x25:
                at += if_true if accumulator > value else if_false
            case 0x45:
                at += if_true if accumulator & value else if_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"operation {operation:#x}")
