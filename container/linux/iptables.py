"""getsockopt(2) as the legacy tables of iptables use it: the name of the table goes in, and its figures come out."""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from container.linux.calls import checked, libc

_SOL_IP: Final = 0
_IPT_SO_GET_INFO: Final = 64
_INFO: Final = struct.Struct("=32s13I")  # struct ipt_getinfo; the last two: entries and bytes


def legacy_table_size(fd: int, table: str) -> tuple[int, int]:
    """Number and bytes of the entries of a legacy table. ``fd``: of a raw IPv4 socket. OSError ENOENT: there is no such table."""
    buffer = ctypes.create_string_buffer(_INFO.pack(table.encode(), *[0] * 13), _INFO.size)
    length = ctypes.c_uint32(_INFO.size)
    checked(
        libc.getsockopt(fd, _SOL_IP, _IPT_SO_GET_INFO, buffer, ctypes.byref(length)),
        f"iptables table {table}",
    )
    *_, entries, size = _INFO.unpack(buffer.raw)
    return entries, size
