"""A small interpreter of classic BPF: what the kernel would answer to a system call under a seccomp filter (seccomp(2))."""

from __future__ import annotations

import struct
from typing import Final

#: AUDIT_ARCH of what uname calls each machine.
ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: The tables for 32-bit programs that their kernels have beside their own.
COMPAT: Final = {"i386": 0x40000003, "arm": 0x40000028}

_BYTES: Final = 64  # struct seccomp_data: number, architecture, instruction pointer, six arguments


def verdict(code: bytes, arch: int, number: int, *arguments: int) -> int:
    """The filter's return value. AssertionError: the kernel would not have taken the filter."""
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
