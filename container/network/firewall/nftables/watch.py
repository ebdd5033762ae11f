"""Sees others change our tables (`nft flush ruleset`, the restart of a firewall service) and reports who did it.

The kernel reports every transaction on nfnetlink group 7: its objects one by one, and at the end (NEWGEN) its author.
Every change of our tables counts, an added rule too: it may open what is closed. Our own changes are known by the name of
the thread that made them (backend.py).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Final

from container.network.netlink import NETFILTER, MessagesLost, attributes, listening, queued

_GROUP_NFTABLES: Final = 7
_BUFFER_BYTES: Final = 4 << 20  # a restore of a thousand containers fits
_SUBSYSTEM, _NEWGEN = 10, 15
_NFGENMSG_BYTES: Final = 4
_TABLE_NAME: Final = 1  # of tables, chains, rules, sets and elements alike
_GEN_PID, _GEN_NAME = 2, 3


class RulesetWatch:
    """Made in a running loop, ended by :meth:`close`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, table: str, own_name: str, on_change: Callable[[str], None]
    ) -> None:
        """``table``: the name of the tables that are watched. ``on_change`` is called with the author's name and pid, or with
        the reason why they are not known. OSError.
        """
        self._loop = loop
        self._table = table.encode()
        self._own_name = own_name.encode()
        self._on_change = on_change
        self._touched = False
        self._socket = listening(NETFILTER, member_of=_GROUP_NFTABLES, buffer_bytes=_BUFFER_BYTES)
        loop.add_reader(self._socket, self._ready)

    def _ready(self) -> None:
        try:
            for kind, payload in queued(self._socket):
                if kind >> 8 == _SUBSYSTEM:
                    self._take(kind & 0xFF, attributes(payload[_NFGENMSG_BYTES:]))
        except MessagesLost:
            self._on_change("unknown: too many changes at once")

    def _take(self, kind: int, found: dict[int, bytes]) -> None:
        if kind != _NEWGEN:
            self._touched |= found.get(_TABLE_NAME, b"").rstrip(b"\0") == self._table
            return
        name = found.get(_GEN_NAME, b"?").rstrip(b"\0")
        if self._touched and name != self._own_name:
            pid = struct.unpack("!I", found[_GEN_PID])[0] if len(found.get(_GEN_PID, b"")) == 4 else 0
            self._on_change(f"{name.decode(errors='replace')} (pid {pid})")
        self._touched = False

    def close(self) -> None:
        """Nothing is reported any more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
