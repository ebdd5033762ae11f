"""Sees transactions of nftables (`nft flush ruleset`, the restart of a firewall service) and who made them.

The kernel reports every transaction on nfnetlink group 7: its objects one by one, and at the end (NEWGEN) its author. The tables
of iptables-nft are nftables' own, so both back ends watch by this.
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


class TransactionWatch:
    """Made in a running loop, ended by :meth:`close`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        concerns: Callable[[int, str], bool],
        on_change: Callable[[str, int], None],
    ) -> None:
        """``concerns``: whether a table is watched, by its address family and its name. ``on_change`` is called with name and pid
        of the thread that changed one; empty and 0: reports were lost. OSError.
        """
        self._loop, self._concerns, self._on_change = loop, concerns, on_change
        self._touched = False
        self._socket = listening(NETFILTER, member_of=_GROUP_NFTABLES, buffer_bytes=_BUFFER_BYTES)
        loop.add_reader(self._socket, self._ready)

    def _ready(self) -> None:
        try:
            for kind, payload in queued(self._socket):
                if kind >> 8 == _SUBSYSTEM and len(payload) >= _NFGENMSG_BYTES:
                    self._take(kind & 0xFF, payload[0], attributes(payload[_NFGENMSG_BYTES:]))
        except MessagesLost:
            self._on_change("", 0)

    def _take(self, kind: int, family: int, found: dict[int, bytes]) -> None:
        if kind != _NEWGEN:
            self._touched = self._touched or self._concerns(family, _text(found, _TABLE_NAME))
        elif self._touched:
            self._touched = False
            pid = struct.unpack("!I", found[_GEN_PID])[0] if len(found.get(_GEN_PID, b"")) == 4 else 0
            self._on_change(_text(found, _GEN_NAME) or "?", pid)

    def close(self) -> None:
        """Nothing is reported any more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()


def told(name: str, pid: int) -> str:
    """The author of a change, for the log."""
    return f"{name} (pid {pid})" if name else "unknown: too many changes at once"


def _text(found: dict[int, bytes], kind: int) -> str:
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")
