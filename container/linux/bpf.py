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
    """OSError; KeyError: an unknown architecture."""
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTRIBUTES_BYTES, b"\0"), _ATTRIBUTES_BYTES)
    return checked(libc.syscall(_SYS_BPF[platform.machine()], command, buffer, _ATTRIBUTES_BYTES), "bpf")


def load_device_program(code: bytes, licence: str) -> int:
    """A descriptor of a program of type CGROUP_DEVICE, checked by the kernel."""
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
    """The program decides about devices in that cgroup from now on, and lives as long as the cgroup."""
    _bpf(_PROG_ATTACH, struct.pack("<IIII", cgroup_fd, program_fd, _ATTACH_DEVICE, 0))
