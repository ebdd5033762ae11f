"""Which devices a container may use, pinned as a literal: the code's own list cannot vouch for itself."""

from __future__ import annotations

import struct

import pytest

from container.cgroups import devices
from container.cgroups.base import DEVICES

pytestmark = pytest.mark.unit

#: Linux's numbers (Documentation/admin-guide/devices.txt): null, zero, full, random, urandom; tty, ptmx; the terminals.
ALLOWED = {
    ("c", 1, 3, "rw"),
    ("c", 1, 5, "rw"),
    ("c", 1, 7, "rw"),
    ("c", 1, 8, "rw"),
    ("c", 1, 9, "rw"),
    ("c", 5, 0, "rw"),
    ("c", 5, 2, "rw"),
    ("c", 136, None, "rw"),
}
CHARACTER, BLOCK = 2, 1
MKNOD, READ, WRITE = 1, 2, 4


def test_the_list_is_these_eight() -> None:
    """A ninth entry, or one that lets a node be made, is a decision and not an edit."""
    assert set(DEVICES) == ALLOWED
    assert len(DEVICES) == len(ALLOWED)


def run(code: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """An interpreter of the few eBPF instructions that such a program consists of; returns r0."""
    context = struct.pack("<III", access << 16 | kind, major, minor)
    register = [0] * 11
    at = 0
    while True:
        opcode, registers, offset, immediate = struct.unpack_from("<BBhi", code, at * 8)
        to, source = registers & 15, registers >> 4
        at += 1
        match opcode:
            case 0x61:  # a word of the context
                (register[to],) = struct.unpack_from("<I", context, offset)
            case 0xBF:
                register[to] = register[source]
            case 0x54:
                register[to] &= immediate & 0xFFFFFFFF
            case 0x74:
                register[to] >>= immediate
            case 0xB7:
                register[to] = immediate
            case 0x55:  # unless equal, jump
                at += offset if register[to] != immediate else 0
            case 0x95:
                return register[0]
            case _:
                pytest.fail(f"instruction {opcode:#x} at {at - 1}")


def may(kind: int, access: int, major: int, minor: int) -> bool:
    return bool(run(devices.program(DEVICES), kind, access, major, minor))


def test_the_program_of_cgroup_v2_decides_as_the_list_says() -> None:
    """Every device near the allowed ones, each kind and each access, against the literal."""
    for kind, letter in ((CHARACTER, "c"), (BLOCK, "b")):
        for major in (0, 1, 2, 4, 5, 6, 7, 8, 10, 135, 136, 137, 188):
            for minor in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1000):
                listed = {(letter, major, minor, "rw"), (letter, major, None, "rw")} & ALLOWED
                for access in range(1, 8):
                    wanted = bool(listed) and not access & MKNOD
                    assert may(kind, access, major, minor) is wanted, (letter, major, minor, access)


def test_nothing_is_made_with_mknod() -> None:
    """Not even a node of an allowed device; reading and writing it together is fine."""
    assert may(CHARACTER, READ | WRITE, 1, 3)
    assert not may(CHARACTER, MKNOD, 1, 3)
    assert not may(CHARACTER, MKNOD | READ, 1, 3)
