"""A container's link: a routed veth pair, no bridge. The host's end by pyroute2, the other end by wshd.

The pair is never deleted by hand (22 to 30 ms, synchronous): it dies with the container's network namespace, and
:class:`DeathWatch` tells when it is gone, since until then its route still is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from container.network.netlink import attributes, messages
from container.network.policy import interface_of
from container.pools import AddressLease

#: The container's way out is this neighbour. It is not the host's end: every packet arrives as somebody else's and is
#: dropped, unless our ingress chain has said otherwise. So a flushed firewall is a closed one (network.md 1).
GATEWAY_MAC = "02:00:5e:00:53:fe"
_RTMGRP_LINK = 1
_DELLINK, _IFINFO_BYTES, _IFNAME = 17, 16, 3
_NUD_PERMANENT = 0x80


def mac_of(link_id: str, end: str) -> str:
    """A locally administered address, the same after a restart."""
    digest = hashlib.sha256(f"{end} {link_id}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def _sysctl(path: str, value: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6 has nothing to switch off
        Path("/proc/sys/net", path).write_text(value)


def exists(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


class Links:
    """Makes links. One netlink socket for the agent's life."""

    def __init__(self, netlink: AsyncIPRoute) -> None:
        self._netlink = netlink

    @classmethod
    async def open(cls) -> Links:
        netlink = AsyncIPRoute()
        await netlink.setup_endpoint()
        return cls(netlink)

    async def add(self, link_id: str, pid: int, lease: AddressLease, mtu: int) -> str:
        """The pair, its far end born as eth0 (index 2) in the namespace of ``pid``. Returns the host end's name.

        OSError: the kernel refused; what is there of the pair by then is the caller's to delete.
        """
        interface = interface_of(link_id)
        try:
            await self._add(interface, link_id, pid, lease, mtu)
        except NetlinkError as e:
            raise OSError(e.code, f"link {interface}: {os.strerror(e.code)}") from e
        return interface

    async def _add(self, interface: str, link_id: str, pid: int, lease: AddressLease, mtu: int) -> None:
        far_mac = mac_of(link_id, "container")
        peer = {
            "ifname": "eth0",
            "net_ns_pid": pid,
            "index": 2,
            "address": far_mac,
            "broadcast": GATEWAY_MAC,  # what is for all needs no neighbour, and must not find the host either
            "mtu": mtu,
        }
        await self._netlink.link(
            "add", ifname=interface, kind="veth", address=mac_of(link_id, "host"), mtu=mtu, peer=peer
        )
        # before it is up: with rules for IPv4 alone a container would reach the host at fe80::
        _sysctl(f"ipv6/conf/{interface}/disable_ipv6", "1")
        _sysctl(f"ipv4/conf/{interface}/rp_filter", "1")
        _sysctl(f"ipv4/conf/{interface}/route_localnet", "1")
        _sysctl(f"ipv4/conf/{interface}/forwarding", "1")
        index = socket.if_nametoindex(interface)
        await self._netlink.addr("add", index=index, address=lease.host_ip, prefixlen=30)
        await self._netlink.link("set", index=index, state="up")
        # permanent: the kernel's table is one for all namespaces and ends at 1,024 learned entries
        await self._netlink.neigh(
            "replace", dst=lease.container_ip, lladdr=far_mac, ifindex=index, state=_NUD_PERMANENT
        )

    async def delete(self, interface: str) -> None:
        """For a pair whose namespace never came to life, or does not end. Idempotent."""
        try:
            index = socket.if_nametoindex(interface)
        except OSError:  # it has no errno; the only reason is that there is none of that name
            return
        try:
            await self._netlink.link("del", index=index)
        except NetlinkError as e:
            if e.code != errno.ENODEV:
                raise

    async def close(self) -> None:
        closing = self._netlink.close()
        if asyncio.iscoroutine(closing):
            await closing


class DeathWatch:
    """Tells when interfaces are gone (RTM_DELLINK)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, _RTMGRP_LINK))
        loop.add_reader(self._socket, self._ready)

    async def gone(self, interface: str) -> None:
        if not exists(interface):
            return
        # The kernel takes the name away first and tells then: what is still there will be told of.
        done: asyncio.Future[None] = self._loop.create_future()
        self._waiting.setdefault(interface, []).append(done)
        await done

    def _ready(self) -> None:
        try:
            while True:
                for kind, payload in messages(self._socket.recv(1 << 16)):
                    if kind == _DELLINK:
                        name = attributes(payload[_IFINFO_BYTES:]).get(_IFNAME, b"")
                        self._tell(name.rstrip(b"\0").decode(errors="replace"))
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno != errno.ENOBUFS:
                raise
        for interface in [name for name in self._waiting if not exists(name)]:  # something was dropped: look
            self._tell(interface)

    def _tell(self, interface: str) -> None:
        for done in self._waiting.pop(interface, ()):
            if not done.done():
                done.set_result(None)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for waiters in self._waiting.values():
            for done in waiters:
                done.cancel()
        self._waiting.clear()
