"""A container's link: a routed veth pair, without a bridge (docs/network.md, "Links").

pyroute2 makes the pair and sets up the host's end; wshd sets up the container's end. The pair is not deleted, because that
takes 22 to 30 ms, synchronously: it goes with the container's network namespace. :class:`LinkWatch` reports when it is gone.
Until then its route still is there, and its addresses must not be given to another container.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from container.network.netlink import (
    REQUEST,
    MessagesLost,
    asking,
    attribute,
    attributes,
    listening,
    message,
    messages,
    queued,
)
from container.network.policy import interface_of
from container.pools import AddressLease
from container.spec import Bandwidth, EgressRule, PortMapping
from wsh.units import MIB

#: The container's neighbour on its way out. No interface has this MAC: the kernel takes every packet for somebody else's
#: and drops it, unless the firewall has marked it as ours. So a flushed firewall is a closed one (docs/network.md, "Links").
GATEWAY_MAC: Final = "02:00:5e:00:53:fe"
PREFIX_LENGTH: Final = 30
_GROUPS: Final = (1 << 0) | (1 << 4)  # RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR
_NEWLINK, _DELLINK, _GETLINK, _DELADDR = 16, 17, 18, 21
_IFINFO_BYTES, _IFADDR_BYTES, _IFNAME, _OPERSTATE = 16, 8, 3, 16
_IFF_UP, _IFF_NOARP = 0x1, 0x80
#: IF_OPER_UP (RFC 2863). "Unknown", which is 0, is also what an interface has before the kernel has looked.
_UP: Final = b"\x06"
_REPLY_BYTES: Final = 1 << 16
_RISE_S: Final = 10.0
_BUFFER_BYTES: Final = MIB
_NUD_PERMANENT: Final = 0x80


@dataclass(frozen=True, slots=True)
class Link:
    """A container's network, as its caller holds it."""

    link_id: str
    interface: str
    lease: AddressLease


@dataclass(frozen=True, slots=True)
class Restored:
    """A link of a former manager that is to be taken up again."""

    link_id: str
    lease: AddressLease
    egress: tuple[EgressRule, ...]
    ports: tuple[PortMapping, ...]
    bandwidth: Bandwidth | None = None


def mac_of(link_id: str, end: str) -> str:
    """A locally administered address, the same after a restart."""
    digest = hashlib.sha256(f"{end} {link_id}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def _sysctl(path: str, value: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6 has nothing to switch off
        Path("/proc/sys/net", path).write_text(value)


def exists(interface: str) -> bool:
    """In the network namespace of this process."""
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


class Links:
    """Makes links, through one netlink socket. Made by :meth:`open`, ended by :meth:`close`."""

    def __init__(self, netlink: AsyncIPRoute) -> None:
        self._netlink = netlink

    @classmethod
    async def open(cls) -> Links:
        """Opens the netlink socket. OSError."""
        netlink = AsyncIPRoute()
        await netlink.setup_endpoint()
        return cls(netlink)

    async def add(self, link_id: str, pid: int, lease: AddressLease, mtu: int, *, arp: bool = True) -> str:
        """Makes the pair; its far end is eth0 (index 2) in the namespace of ``pid``. Returns the host end's name.

        ``mtu`` in bytes. ``arp`` False: the host's end answers no ARP, where no firewall rule sees it. OSError: the kernel
        refused; the caller deletes what there is of the pair by then.
        """
        interface = interface_of(link_id)
        try:
            await self._add(interface, link_id, pid, lease, mtu, arp=arp)
        except NetlinkError as e:
            raise OSError(e.code, f"link {interface}: {os.strerror(e.code)}") from e
        return interface

    async def _add(
        self, interface: str, link_id: str, pid: int, lease: AddressLease, mtu: int, *, arp: bool
    ) -> None:
        far_mac = mac_of(link_id, "container")
        peer = {
            "ifname": "eth0",
            "net_ns_pid": pid,
            "index": 2,
            "address": far_mac,
            "broadcast": GATEWAY_MAC,  # a broadcast needs no neighbour, and must not reach the host either
            "mtu": mtu,
        }
        await self._netlink.link(
            "add", ifname=interface, kind="veth", address=mac_of(link_id, "host"), mtu=mtu, peer=peer
        )
        # Before it is up: with rules for IPv4 alone a container would reach the host at fe80::.
        _sysctl(f"ipv6/conf/{interface}/disable_ipv6", "1")
        _sysctl(f"ipv4/conf/{interface}/rp_filter", "1")
        _sysctl(f"ipv4/conf/{interface}/route_localnet", "1")
        _sysctl(f"ipv4/conf/{interface}/forwarding", "1")
        index = socket.if_nametoindex(interface)
        if not arp:
            await self._netlink.link("set", index=index, flags=_IFF_NOARP, change=_IFF_NOARP)
        await self._netlink.addr("add", index=index, address=lease.host_ip, prefixlen=PREFIX_LENGTH)
        await self._raise(index, link_id, lease)

    async def _raise(self, index: int, link_id: str, lease: AddressLease) -> None:
        await self._netlink.link("set", index=index, state="up")
        # Permanent: the kernel's table is one for all namespaces and holds 1,024 learned entries.
        await self._netlink.neigh(
            "replace",
            dst=lease.container_ip,
            lladdr=mac_of(link_id, "container"),
            ifindex=index,
            state=_NUD_PERMANENT,
        )

    async def mend(self, link: Link, index: int) -> None:
        """Gives the host's end of a link its address, state and neighbour again. OSError: also when it is gone."""
        try:
            await self._netlink.addr(
                "replace", index=index, address=link.lease.host_ip, prefixlen=PREFIX_LENGTH
            )
            await self._raise(index, link.link_id, link.lease)
        except NetlinkError as e:
            raise OSError(e.code, f"link {link.interface}: {os.strerror(e.code)}") from e

    async def delete(self, interface: str) -> None:
        """For a pair whose namespace was never used, or does not end. Idempotent. NetlinkError."""
        try:
            index = socket.if_nametoindex(interface)
        except OSError:  # there is no interface of that name; the error has no errno
            return
        try:
            await self._netlink.link("del", index=index)
        except NetlinkError as e:
            if e.code != errno.ENODEV:
                raise

    async def close(self) -> None:
        """Closes the netlink socket. The links stay."""
        closing = self._netlink.close()
        if asyncio.iscoroutine(closing):
            await closing


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What the kernel reports of the interface ``index``. ``name`` empty: it lost an address."""

    index: int
    name: str = ""
    is_deleted: bool = False
    is_up: bool = False


def parse_report(kind: int, payload: bytes) -> LinkReport | None:
    """A message of the kernel (rtnetlink(7)); None: it is about something else, or broken. Pure."""
    if kind == _DELADDR and len(payload) >= _IFADDR_BYTES:
        return LinkReport(struct.unpack_from("=I", payload, 4)[0])
    if kind not in (_NEWLINK, _DELLINK) or len(payload) < _IFINFO_BYTES:
        return None
    index, flags = struct.unpack_from("=iI", payload, 4)
    name = attributes(payload[_IFINFO_BYTES:]).get(_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    return LinkReport(index, name, kind == _DELLINK, bool(flags & _IFF_UP)) if name else None


class LinkWatch:
    """Reports when interfaces pass packets, and when they are gone. Made in a running loop, ended by :meth:`close`.

    ``seen``: called with each report of the kernel; None: reports were lost.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seen: Callable[[LinkReport | None], None]) -> None:
        self._loop, self._seen = loop, seen
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._rising: dict[str, list[asyncio.Future[None]]] = {}
        self._up: set[str] = set()
        self._socket = listening(socket.NETLINK_ROUTE, groups=_GROUPS, buffer_bytes=_BUFFER_BYTES)
        loop.add_reader(self._socket, self._ready)

    async def up(self, interface: str, timeout_s: float = _RISE_S) -> None:
        """Returns when the interface passes packets. OSError: it does not within ``timeout_s``, or there is none.

        A link's host end has a carrier as soon as the far end is up. But the kernel gives it a queue in a work item of its own,
        which waits for the lock of all network changes. Until then it drops each packet (net/core/link_watch.c).
        """
        if interface in self._up:
            return
        done: asyncio.Future[None] = self._loop.create_future()
        self._rising.setdefault(interface, []).append(done)
        if await asyncio.to_thread(_is_up, interface):  # the report may have been lost, or wait in the socket
            self._set_up(interface)
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError:
            raise OSError(
                errno.ETIMEDOUT, f"link {interface}: passes no packet after {timeout_s:g} s"
            ) from None
        finally:
            if done in (waiters := self._rising.get(interface, [])):
                waiters.remove(done)

    async def gone(self, interface: str) -> None:
        """Returns when there is no such interface. Cancelled when the watch is closed."""
        if not exists(interface):
            return
        # The kernel removes the name first and reports it then. What is still there will be reported.
        done: asyncio.Future[None] = self._loop.create_future()
        self._waiting.setdefault(interface, []).append(done)
        await done

    def _ready(self) -> None:
        try:
            for kind, payload in queued(self._socket):
                if kind in (_NEWLINK, _DELLINK):
                    found = attributes(payload[_IFINFO_BYTES:])
                    name = found.get(_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
                    if kind == _DELLINK:
                        self._up.discard(name)
                        self._settle(self._waiting, name)
                    elif found.get(_OPERSTATE) == _UP:
                        self._set_up(name)
                if (report := parse_report(kind, payload)) is not None:
                    self._seen(report)
        except MessagesLost:
            for interface in [name for name in self._waiting if not exists(name)]:
                self._settle(self._waiting, interface)
            self._up = {name for name in self._up if exists(name)}
            for interface in [name for name in self._rising if _is_up(name)]:
                self._set_up(interface)
            self._seen(None)

    def _set_up(self, interface: str) -> None:
        self._up.add(interface)
        self._settle(self._rising, interface)

    @staticmethod
    def _settle(waiting: dict[str, list[asyncio.Future[None]]], interface: str) -> None:
        for done in waiting.pop(interface, ()):
            if not done.done():
                done.set_result(None)

    def close(self) -> None:
        """Cancels all that wait."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for table in (self._waiting, self._rising):
            for waiters in table.values():
                for done in waiters:
                    done.cancel()
            table.clear()


def _is_up(interface: str) -> bool:
    """Asks the kernel. False: also if there is no such interface. OSError: no socket."""
    wanted = bytes(_IFINFO_BYTES) + attribute(_IFNAME, interface.encode() + b"\0")
    with asking(socket.NETLINK_ROUTE) as asker:
        asker.send(message(_GETLINK, REQUEST, wanted))
        for kind, payload in messages(asker.recv(_REPLY_BYTES)):
            if kind == _NEWLINK:
                return attributes(payload[_IFINFO_BYTES:]).get(_OPERSTATE) == _UP
    return False
