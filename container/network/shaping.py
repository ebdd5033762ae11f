"""Bandwidth limits of links, and what has passed through them (docs/network.md, "Bandwidth").

Into a container its packets wait in a tbf on the host's end. Out of it they wait in a tbf on an ifb, to which the gate
hands what it lets in. The order of the steps keeps a link limited at each moment: an ifb has its tbf before it is up, the
firewall names it only then, and it goes after the firewall has let go of it.

By hand, and in a thread: pyroute2's tbf knows neither rates of 64 bits nor bursts in bytes, and a deletion takes the kernel
20 ms.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from container.aio import Log
from container.errors import ContainerError
from container.network.netlink import (
    DUMP,
    NESTED,
    REQUEST,
    answered,
    asking,
    attribute,
    attributes,
    dumped,
    message,
)
from container.network.policy import INTERFACE_PREFIX, LinkRules, interface_of, shaper_of
from container.spec import Bandwidth, SpecError

_NEWLINK, _DELLINK, _NEWQDISC, _DELQDISC, _GETQDISC, _GETSTATS = 16, 17, 36, 37, 38, 94
_ECHO, _REPLACE, _EXCLUSIVE, _CREATE = (
    0x8,
    0x100,
    0x200,
    0x400,
)  # a qdisc is shown to its asker only with ECHO
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_INFO_KIND, _STATS_LINK_64 = 3, 4, 18, 1, 1
_IFF_UP: Final = 1
_TCA_KIND, _TCA_OPTIONS, _TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 2, 1, 4, 6
_ROOT, _HANDLE = 0xFFFF_FFFF, 0x1_0000  # a replace of the same handle changes the qdisc that stands
_TCMSG: Final = struct.Struct("=BxHiIII")  # family, -, interface, handle, parent, info
_PARMS: Final = struct.Struct(
    "=BBHhHI 12x III"
)  # tc_tbf_qopt: cell log, link layer, -, -, -, rate; peak; limit, buffer, mtu
_ETHERNET: Final = 1
#: The answers for a device without the qdisc, without any, or that has just gone, and of a kernel without qdiscs.
_NO_QDISC: Final = (errno.ENOENT, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP)
_U32: Final = 0xFFFF_FFFF
_TICK_NS: Final = 64  # the kernel keeps and reports a burst as the time that it takes
_HEADER_BYTES: Final = 14
_QUEUE_SHARE_S: Final = 10  # a tenth of a second of packets may wait
_QUEUE_PACKETS: Final = 16

_Lead: TypeAlias = Callable[[bool, bool], Awaitable[None]]


class ShapingError(ContainerError, RuntimeError):
    """The kernel cannot limit bandwidth: it lacks what the text names."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a container has received (rx) and sent (tx) since it was made."""

    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


@dataclass(frozen=True, slots=True)
class LinkUse:
    """``inbound``: the limit into the container, ``outbound``: out of it; None: there is none. ``traffic`` None: no link."""

    traffic: Traffic | None = None
    inbound: Bandwidth | None = None
    outbound: Bandwidth | None = None


def least_burst_bytes(mtu: int) -> int:
    """One packet, in bytes. The kernel drops what is larger than the burst."""
    return mtu + _HEADER_BYTES


def tbf_options(bandwidth: Bandwidth, mtu: int) -> bytes:
    """The options of a tbf. Pure."""
    rate, burst = bandwidth.rate_bytes_s, bandwidth.burst_bytes
    queue = max(rate // _QUEUE_SHARE_S, _QUEUE_PACKETS * least_burst_bytes(mtu))
    ticks = min(_ticks_of(bandwidth), _U32)
    parms = _PARMS.pack(0, _ETHERNET, 0, 0, 0, min(rate, _U32), min(burst + queue, _U32), ticks, 0)
    rate64 = attribute(_TBF_RATE64, struct.pack("=Q", rate)) if rate > _U32 else b""
    return attribute(_TBF_PARMS, parms) + rate64 + attribute(_TBF_BURST, struct.pack("=I", burst))


def bandwidth_of(options: bytes, asked: Bandwidth | None) -> Bandwidth:
    """What a tbf's options say. Pure.

    A burst comes back as a number of 64 ns, of which the kernel shows 32 bits. ``asked`` is the answer if it gives the
    same number; else the burst is computed, to within the bytes of 64 ns.
    """
    found = attributes(options)
    _, _, _, _, _, rate, _, ticks, _ = _PARMS.unpack_from(found[_TBF_PARMS])
    if _TBF_RATE64 in found:
        (rate,) = struct.unpack("=Q", found[_TBF_RATE64][:8])
    if asked is not None and asked.rate_bytes_s == rate:
        expected = _ticks_of(asked)
        away = (ticks - expected) % (1 << 32)
        if min(away, (1 << 32) - away) <= 1 + (expected >> 30):
            return asked
    burst = -(-ticks * _TICK_NS * rate // 1_000_000_000)
    return Bandwidth(rate, min(max(burst, 1), _U32))


def _ticks_of(bandwidth: Bandwidth) -> int:
    return bandwidth.burst_bytes * 1_000_000_000 // bandwidth.rate_bytes_s // _TICK_NS


class Shaper:
    """Limits the links of one network namespace. ``mtu`` in bytes."""

    def __init__(self, mtu: int, log: Log) -> None:
        self._mtu = mtu
        self._log = log
        self._changing = asyncio.Lock()  # one change at a time, so that a removal is the last one of its link

    def _check(self, bandwidth: Bandwidth | None) -> None:
        least = least_burst_bytes(self._mtu)
        if bandwidth is not None and bandwidth.burst_bytes < least:
            raise SpecError(
                "bandwidth.burst_bytes", f"expected at least {least}, one packet, got {bandwidth.burst_bytes}"
            )

    async def begin(self, link_id: str, bandwidth: Bandwidth | None) -> None:
        """Limits a link that no packet passes yet; None: it has no limit. SpecError, ShapingError, OSError."""
        self._check(bandwidth)
        if bandwidth is not None:
            await asyncio.to_thread(self._shape, link_id, bandwidth)

    async def limit(
        self,
        link_id: str,
        bandwidth: Bandwidth | None,
        former: Bandwidth | None,
        find: Callable[[], LinkRules | None],
        lead: _Lead,
    ) -> None:
        """Puts ``bandwidth`` in the place of ``former``; None: no limit. After an error ``former`` is in force.

        ``find`` returns what the firewall enforces for the link now. ``lead(shaped, anew)`` makes it lead through the ifb, or past
        it; ``anew``: it may know another ifb of that name, which others have removed.
        """
        self._check(bandwidth)
        async with self._changing:
            if find() is None:
                raise OSError(errno.ENODEV, f"link {link_id} is gone")
            try:
                await self._put(link_id, bandwidth, find, lead)
            except BaseException:
                with suppress(OSError, ContainerError):
                    await self._put(link_id, former, find, lead)
                raise

    async def _put(
        self, link_id: str, bandwidth: Bandwidth | None, find: Callable[[], LinkRules | None], lead: _Lead
    ) -> None:
        is_new = bandwidth is not None and await asyncio.to_thread(self._shape, link_id, bandwidth)
        was_shaped, shaped = (rules := find()) is not None and rules.shaped, bandwidth is not None
        if was_shaped != shaped or is_new:
            await lead(shaped, is_new and was_shaped)
        if bandwidth is None:
            await asyncio.to_thread(_lift, link_id)

    async def remove(self, link_id: str) -> None:
        """Removes the ifb alone, for a link that is going. Idempotent. OSError."""
        async with self._changing:
            if _index_of(shaper_of(link_id)):
                await asyncio.to_thread(_delete, shaper_of(link_id))

    async def restore(self, wanted: Mapping[str, Bandwidth]) -> None:
        """Sets the limits of a former manager's links again, without a gap. A link whose limit is refused is logged.

        The firewall leads it to its ifb all the same: without one it is closed.
        """
        if wanted:
            for link_id, error in (await asyncio.to_thread(self._restore, wanted)).items():
                self._log.warning("bandwidth_limit_not_set_again", link=link_id, error=error)

    async def sweep(self, unlimited: frozenset[str]) -> None:
        """Removes the limits and ifbs of these links, and ifbs whose link is gone. Links of other depots are left alone.

        An error is logged: no link that is in use depends on it.
        """
        try:
            await asyncio.to_thread(_sweep, unlimited)
        except OSError as e:
            self._log.warning("bandwidth_limits_not_swept", error=str(e))

    async def measure(self, link_id: str, asked: Bandwidth | None) -> LinkUse:
        """What the kernel has of a link; nothing where there is none. OSError."""
        return await asyncio.to_thread(_measure, link_id, asked)

    def _shape(self, link_id: str, bandwidth: Bandwidth) -> bool:
        """True: its ifb was made now."""
        ifb, options = shaper_of(link_id), tbf_options(bandwidth, self._mtu)
        with asking(socket.NETLINK_ROUTE) as asker:
            if is_new := not _index_of(ifb):
                _make_ifb(asker, ifb, self._mtu)
            _set_tbf(asker, ifb, options)
            _set_up(asker, ifb)
            _set_tbf(asker, interface_of(link_id), options)
        return is_new

    def _restore(self, wanted: Mapping[str, Bandwidth]) -> dict[str, str]:
        errors = dict[str, str]()
        for link_id, bandwidth in wanted.items():
            try:
                self._shape(link_id, bandwidth)
            except (OSError, ShapingError) as e:
                errors[link_id] = str(e)
        return errors


def _index_of(interface: str) -> int:
    """0: there is none."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


def _existing_index_of(interface: str) -> int:
    if not (index := _index_of(interface)):
        raise OSError(errno.ENODEV, f"{interface}: {os.strerror(errno.ENODEV)}")
    return index


def _ifinfo(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _tcmsg(index: int, handle: int = 0) -> bytes:
    return _TCMSG.pack(socket.AF_UNSPEC, 0, index, handle, _ROOT, 0)


def _make_ifb(asker: socket.socket, ifb: str, mtu: int) -> None:
    info = attribute(_IFLA_INFO_KIND, b"ifb\0")
    body = _ifinfo() + attribute(_IFLA_IFNAME, ifb.encode() + b"\0")
    body += attribute(_IFLA_MTU, struct.pack("=I", mtu)) + attribute(_IFLA_LINKINFO | NESTED, info)
    try:
        answered(asker, _NEWLINK, _CREATE | _EXCLUSIVE, body, ifb)
    except OSError as e:
        if e.errno == errno.EOPNOTSUPP:
            raise ShapingError("bandwidth: the kernel has no ifb devices (CONFIG_IFB)") from e
        raise
    with suppress(FileNotFoundError):  # a kernel without IPv6
        Path(f"/proc/sys/net/ipv6/conf/{ifb}/disable_ipv6").write_text("1")


def _set_tbf(asker: socket.socket, interface: str, options: bytes) -> None:
    body = _tcmsg(_existing_index_of(interface), _HANDLE)
    body += attribute(_TCA_KIND, b"tbf\0") + attribute(_TCA_OPTIONS | NESTED, options)
    try:
        answered(asker, _NEWQDISC, _CREATE | _REPLACE, body, f"tbf of {interface}")
    except FileNotFoundError as e:
        raise ShapingError("bandwidth: the kernel has no token bucket filter (CONFIG_NET_SCH_TBF)") from e


def _set_up(asker: socket.socket, interface: str) -> None:
    answered(asker, _NEWLINK, 0, _ifinfo(_existing_index_of(interface), _IFF_UP), interface)


def _lift(link_id: str) -> None:
    if index := _index_of(interface_of(link_id)):
        with asking(socket.NETLINK_ROUTE) as asker:
            try:
                answered(asker, _DELQDISC, 0, _tcmsg(index, _HANDLE), f"tbf of {interface_of(link_id)}")
            except OSError as e:
                if e.errno not in _NO_QDISC:
                    raise
    _delete(shaper_of(link_id))


def _delete(ifb: str) -> None:
    if index := _index_of(ifb):
        with asking(socket.NETLINK_ROUTE) as asker:
            try:
                answered(asker, _DELLINK, 0, _ifinfo(index), ifb)
            except OSError as e:
                if e.errno != errno.ENODEV:
                    raise


def _sweep(unlimited: frozenset[str]) -> None:
    names = {name for _, name in socket.if_nameindex()}
    ifbs = {_link_of(name) for name in names if name.endswith("-2")} - {""}
    found = {link_id for link_id in ifbs if link_id in unlimited or interface_of(link_id) not in names}
    with asking(socket.NETLINK_ROUTE) as asker:
        found |= unlimited.intersection(_link_of(name) for name in _with_tbf(asker))
    for link_id in found:
        _lift(link_id)


def _with_tbf(asker: socket.socket) -> list[str]:
    """The names of all interfaces with a tbf."""
    asker.send(message(_GETQDISC, REQUEST | DUMP, _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0)))
    try:
        shaped = [payload for payload in dumped(asker, "qdiscs") if _tbf_in(payload) is not None]
    except OSError as e:
        if e.errno == errno.EOPNOTSUPP:  # a kernel without qdiscs
            return []
        raise
    names = list[str]()
    for payload in shaped:
        with suppress(OSError):  # it has just gone
            names.append(socket.if_indextoname(_TCMSG.unpack_from(payload)[2]))
    return names


def _link_of(interface: str) -> str:
    """The id of the link that an interface belongs to; empty: to none of ours."""
    link_id = interface[len(INTERFACE_PREFIX) : -2]
    return link_id if interface in (interface_of(link_id), shaper_of(link_id)) else ""


def _tbf_in(payload: bytes) -> bytes | None:
    """The options of the qdisc that a message describes; None: it is not the root's tbf."""
    if len(payload) < _TCMSG.size or _TCMSG.unpack_from(payload)[4] != _ROOT:
        return None
    found = attributes(payload[_TCMSG.size :])
    return found.get(_TCA_OPTIONS) if found.get(_TCA_KIND, b"").rstrip(b"\0") == b"tbf" else None


def _measure(link_id: str, asked: Bandwidth | None) -> LinkUse:
    interface = interface_of(link_id)
    with asking(socket.NETLINK_ROUTE) as asker:
        if not (index := _index_of(interface)):
            return LinkUse()
        try:
            stats = answered(asker, _GETSTATS, 0, struct.pack("=BxHII", 0, 0, index, 1), interface)
        except OSError as e:
            if e.errno == errno.ENODEV:
                return LinkUse()
            raise
        counters = attributes(stats[12:])[_STATS_LINK_64]
        # what the host's end receives is what the container has sent
        tx_packets, rx_packets, tx_bytes, rx_bytes = struct.unpack_from("=QQQQ", counters)
        return LinkUse(
            Traffic(rx_bytes, rx_packets, tx_bytes, tx_packets),
            _limit_of(asker, interface, asked),
            _limit_of(asker, shaper_of(link_id), asked),
        )


def _limit_of(asker: socket.socket, interface: str, asked: Bandwidth | None) -> Bandwidth | None:
    if not (index := _index_of(interface)):
        return None
    try:
        answer = answered(asker, _GETQDISC, _ECHO, _tcmsg(index), f"qdisc of {interface}")
    except OSError as e:
        if e.errno in _NO_QDISC:
            return None
        raise
    options = _tbf_in(answer)
    return bandwidth_of(options, asked) if options is not None else None
