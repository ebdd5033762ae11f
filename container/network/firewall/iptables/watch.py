"""Notices that somebody has changed tables in which we have rules. Whether it was our part, backend.py finds out.

The nft variant's tables are nftables' own, and the kernel reports each of their transactions with its author. Of the legacy
variant nothing is reported, so the number and size of each table's entries are asked for periodically.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final

from container import linux
from container.network.firewall.iptables.programs import Variant
from container.network.firewall.iptables.text import TABLES
from container.network.netlink import NETFILTER, MessagesLost, attributes, listening, queued

_GROUP_NFTABLES: Final = 7
_BUFFER_BYTES: Final = 4 << 20
_SUBSYSTEM, _NEWGEN = 10, 15
_NFGENMSG_BYTES: Final = 4
_TABLE_NAME: Final = 1
_GEN_PID, _GEN_NAME = 2, 3
_PERIOD_S: Final = 1.0
#: A change that leaves number and size as they were is found by looking at everything so often.
_LOOK_PERIODS: Final = 10


def watch(variant: Variant, on_change: Callable[[str], None]) -> Callable[[], None]:
    """Calls ``on_change`` in the running loop with who it was, or why that is not known. Returns what ends it. OSError."""
    loop = asyncio.get_running_loop()
    if variant == "nft":
        return _NftWatch(loop, on_change).close
    return _LegacyWatch(loop, on_change).close


class _NftWatch:
    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[str], None]) -> None:
        self._loop, self._on_change = loop, on_change
        self._touched = False
        self._names = {table.encode() for table in TABLES}
        self._socket = listening(NETFILTER, member_of=_GROUP_NFTABLES, buffer_bytes=_BUFFER_BYTES)
        loop.add_reader(self._socket, self._ready)

    def _ready(self) -> None:
        try:
            for kind, payload in queued(self._socket):
                if kind >> 8 == _SUBSYSTEM:
                    self._take(kind & 0xFF, payload)
        except MessagesLost:
            self._on_change("unknown: too many changes at once")

    def _take(self, kind: int, payload: bytes) -> None:
        found = attributes(payload[_NFGENMSG_BYTES:])
        if kind != _NEWGEN:
            of_ip = payload[:1] == bytes([socket.AF_INET])
            self._touched |= of_ip and found.get(_TABLE_NAME, b"").rstrip(b"\0") in self._names
        elif self._touched:
            self._touched = False
            name = found.get(_GEN_NAME, b"?").rstrip(b"\0").decode(errors="replace")
            pid = struct.unpack("!I", found[_GEN_PID])[0] if len(found.get(_GEN_PID, b"")) == 4 else 0
            self._on_change(f"{name} (pid {pid})")

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()


class _LegacyWatch:
    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[str], None]) -> None:
        self._loop, self._on_change = loop, on_change
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW
        )
        self._seen = self._look()
        self._periods = 0
        self._timer = loop.call_later(_PERIOD_S, self._ask)

    def _look(self) -> list[tuple[int, int]]:
        """Number and bytes of the entries, by table; (0, 0): there is no such table."""
        return [self._info(table) for table in TABLES]

    def _info(self, table: str) -> tuple[int, int]:
        try:
            return linux.legacy_table_size(self._socket.fileno(), table)
        except OSError:
            return 0, 0

    def _ask(self) -> None:
        self._timer = self._loop.call_later(_PERIOD_S, self._ask)
        self._periods += 1
        seen = self._look()
        if seen != self._seen or self._periods >= _LOOK_PERIODS:
            self._seen, self._periods = seen, 0
            self._on_change("unknown: iptables-legacy names nobody")

    def close(self) -> None:
        self._timer.cancel()
        self._socket.close()
