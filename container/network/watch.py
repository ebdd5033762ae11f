"""Sees others change our tables (`nft flush ruleset`, a restart of a firewall service) and says who.

The kernel tells of every transaction on nfnetlink group 7; its last message (NEWGEN) names the author. Our own changes come
from the worker thread of nftables.py and are passed over.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

from container.network.link import attributes, netlink_messages
from container.network.rules import TABLE

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP_NFTABLES = 7
_NFTABLES = 10 << 8
_DELTABLE, _DELCHAIN, _DELRULE, _NEWGEN = (_NFTABLES | number for number in (2, 5, 8, 15))


class RulesetWatch:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, own_id: Callable[[], int], on_change: Callable[[str], None]
    ) -> None:
        """``on_change`` gets the culprit's name and pid, or why that is not known."""
        self._loop = loop
        self._own_id = own_id
        self._on_change = on_change
        self._dirty = False
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
        loop.add_reader(self._socket, self._ready)

    def _ready(self) -> None:
        try:
            while True:
                for kind, payload in netlink_messages(self._socket.recv(1 << 18)):
                    self._take(kind, payload)
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno != errno.ENOBUFS:
                raise
            self._on_change("unknown: too many changes at once")

    def _take(self, kind: int, payload: bytes) -> None:
        found = attributes(payload[4:])
        if kind in (_DELTABLE, _DELCHAIN, _DELRULE):
            self._dirty |= found.get(1, b"").rstrip(b"\0") == TABLE.encode()
        elif kind == _NEWGEN:
            author = struct.unpack("!I", found[2])[0] if len(found.get(2, b"")) == 4 else 0
            if self._dirty and author != self._own_id():
                name = found.get(3, b"?").rstrip(b"\0").decode(errors="replace")
                self._on_change(f"{name} (pid {author})")
            self._dirty = False

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
