"""bpf(2): device programs of cgroup v2."""

from __future__ import annotations

import ctypes
import platform
import struct
from typing import Final

from container.linux.calls import checked, libc

_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_ATTACH = 5, 8
_TYPE_CGROUP_DEVICE, _ATTACH_DEVICE = 15, 6
_ATTRIBUTES_BYTES: Final = 128
_INSTRUCTION_BYTES: Final = 8


def _bpf(command: int, attributes: bytes) -> int:
    """One bpf(2) call. OSError; KeyError: the architecture is not in the table."""
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTRIBUTES_BYTES, b"\0"), _ATTRIBUTES_BYTES)
    return checked(libc.syscall(_SYS_BPF[platform.machine()], command, buffer, _ATTRIBUTES_BYTES), "bpf")


def load_device_program(code: bytes, licence: str) -> int:
    """Loads a program of type CGROUP_DEVICE, which the kernel verifies. Returns its descriptor. OSError."""
    text = ctypes.create_string_buffer(code, len(code))
    name = ctypes.create_string_buffer(licence.encode())
    attributes = struct.pack(
        "<IIQQ",
        _TYPE_CGROUP_DEVICE,
        len(code) // _INSTRUCTION_BYTES,
        ctypes.addressof(text),
        ctypes.addressof(name),
    )
    return _bpf(_PROG_LOAD, attributes)


def attach_device_program(cgroup_fd: int, program_fd: int) -> None:
    """Lets the program decide about devices in that cgroup, until the cgroup is removed. OSError."""
    _bpf(_PROG_ATTACH, struct.pack("<IIII", cgroup_fd, program_fd, _ATTACH_DEVICE, 0))
