"""The device allow-list of cgroup v2: an eBPF program of type CGROUP_DEVICE, written by hand.

The kernel runs the program when a process opens a device. The program compares the request (access and type, major, minor;
linux/bpf.h, struct bpf_cgroup_dev_ctx) with each rule in turn, and refuses it if no rule matches. Everything is pure except
:func:`attach`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from container import linux
from container.cgroups.base import DeviceRule

_LICENCE = "Apache-2.0"
_ACCESS = {"m": 1, "r": 2, "w": 4}
_KIND = {"b": 1, "c": 2}


def _insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


def program(rules: Sequence[DeviceRule]) -> bytes:
    """The program. r2: type, r3: access, r4: major, r5: minor. A rule that does not match jumps to the next rule."""
    code = [
        _insn(0x61, 2, 1, 0),  # r2 = *(u32 *)(r1 + 0)
        _insn(0xBF, 3, 2),  # r3 = r2
        _insn(0x54, 2, 0, 0, 0xFFFF),  # w2 &= 0xffff: type
        _insn(0x74, 3, 0, 0, 16),  # w3 >>= 16: access
        _insn(0x61, 4, 1, 4),  # r4 = major
        _insn(0x61, 5, 1, 8),  # r5 = minor
    ]
    for kind, major, minor, access in rules:
        refused = 7 & ~sum(_ACCESS[letter] for letter in access)
        body = [(0x55, 2, _KIND[kind]), (0x55, 4, major)]
        if minor is not None:
            body.append((0x55, 5, minor))
        # jump targets: over the rest of this rule, its access test (3) and its "yes" (2)
        left = len(body) + 5
        for opcode, register, value in body:
            left -= 1
            code.append(_insn(opcode, register, 0, left, value))
        code += [
            _insn(0xBF, 6, 3),
            _insn(0x54, 6, 0, 0, refused),
            _insn(0x55, 6, 0, 2, 0),
            _insn(0xB7, 0, 0, 0, 1),
            _insn(0x95),
        ]
    code += [_insn(0xB7, 0, 0, 0, 0), _insn(0x95)]
    return b"".join(code)


def attach(directory: Path, rules: Sequence[DeviceRule]) -> None:
    """Allows exactly these devices in a cgroup, until the cgroup is removed. OSError: the kernel refused."""
    loaded = linux.load_device_program(program(rules), _LICENCE)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            linux.attach_device_program(fd, loaded)
        finally:
            os.close(fd)
    finally:
        os.close(loaded)
