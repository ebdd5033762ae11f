"""Two xfrm policies that stop every packet from the pool that has no mark of ours. So a flushed firewall is a closed one.

An iptables flush leaves these policies and takes the marks. Input needs the verdict OK. Forwarding lets denied packets
pass too, because filter answers them with a refusal. Raw netlink (linux/xfrm.h).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from container.network.firewall import FirewallError
from container.network.firewall.iptables.text import DENY, OK
from container.network.netlink import MessagesLost, answered, asking, attribute, listening, queued
from wsh.units import MIB

_NETLINK_XFRM: Final = 6
_GROUPS: Final = 1 << 3  # XFRMNLGRP_POLICY
_BUFFER_BYTES: Final = MIB
_DELETE, _GET, _UPDATE = 20, 21, 25
_MARK: Final = 21  # XFRMA_MARK
_IN, _FWD = 0, 2
_BLOCK: Final = 1
_PRIORITY: Final = 1
#: Direction, and the bits of the mark of which a packet needs one.
_POLICIES: Final = ((_IN, OK), (_FWD, OK | DENY))
_FOREVER: Final = 0xFFFFFFFFFFFFFFFF


def _selector(pool: str) -> bytes:
    """From the pool to anywhere, of any protocol (struct xfrm_selector)."""
    network = ipaddress.IPv4Network(pool)
    source = network.network_address.packed + bytes(12)
    return struct.pack("=16s16s8xHBBB3xiI", bytes(16), source, socket.AF_INET, 0, network.prefixlen, 0, 0, 0)


def _marked(mask: int) -> bytes:
    return attribute(_MARK, struct.pack("=II", 0, mask))


def close_pool(pool: str) -> None:
    """Sets both policies, whether they are there or not. FirewallError: the kernel cannot."""
    lifetime = struct.pack("=8Q", *[_FOREVER] * 4, 0, 0, 0, 0) + bytes(32)
    for direction, mask in _POLICIES:
        rest = struct.pack("=IIBBBB4x", _PRIORITY, 0, direction, _BLOCK, 0, 0)
        _ask(_UPDATE, _selector(pool) + lifetime + rest + _marked(mask), "set")


def open_pool(pool: str) -> None:
    """Removes both. It is no error when they are not there. FirewallError."""
    for direction, mask in _POLICIES:
        _ask(_DELETE, _id(pool, direction) + _marked(mask), "removed", may_lack=True)


def is_closed(pool: str) -> bool:
    """Whether both are there. FirewallError."""
    return all(
        _ask(_GET, _id(pool, direction) + _marked(mask), "read", may_lack=True)
        for direction, mask in _POLICIES
    )


def _id(pool: str, direction: int) -> bytes:
    return _selector(pool) + struct.pack("=IB3x", 0, direction)


def _ask(kind: int, body: bytes, what: str, *, may_lack: bool = False) -> bool:
    try:
        with asking(_NETLINK_XFRM) as asker:
            answered(asker, kind, 0, body, "xfrm policy")
    except OSError as e:
        if may_lack and e.errno == errno.ENOENT:
            return False
        raise FirewallError(
            f"iptables: the xfrm policy that closes the pool cannot be {what}: {e} (the kernel needs CONFIG_XFRM_USER)"
        ) from e
    return True


class PolicyWatch:
    """Reports every change of xfrm policies. Made in a running loop, ended by :meth:`close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[str], None]) -> None:
        self._loop, self._on_change = loop, on_change
        self._socket = listening(_NETLINK_XFRM, groups=_GROUPS, buffer_bytes=_BUFFER_BYTES)
        loop.add_reader(self._socket, self._ready)

    def _ready(self) -> None:
        seen = True
        with suppress(MessagesLost):
            seen = bool(list(queued(self._socket)))
        if seen:
            self._on_change("a change of xfrm policies")

    def close(self) -> None:
        """Nothing is reported any more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
