"""Forwarding for containers alone: `conf.INTERFACE.forwarding` of our links and of the uplinks (docs/network.md, "Forwarding").

The kernel asks the interface by which a packet comes in whether the packet may be forwarded (ip-sysctl,
conf/interface/forwarding). So an uplink needs it for the answers to containers. A machine of that network could then pass
by this host to its other networks. The firewall's guard (`Ruleset.guarded`) refuses that on each uplink that was opened here.

`ip_forward` stays as it was found. Once somebody switches it on, the host is their router and their firewall decides: the
guard goes and nothing is switched back. When it is switched off again, the kernel closes our interfaces too, and they are
opened anew.

What is opened is recorded beside the depot before it is opened, so that a later manager knows what is to be closed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from container.aio import Background, Log
from container.network.firewall import FirewallError
from container.network.netlink import (
    DUMP,
    REQUEST,
    MessagesLost,
    asking,
    attributes,
    dumped,
    listening,
    message,
    queued,
)
from container.network.policy import INTERFACE_PREFIX
from wsh.units import MIB

_CONF: Final = Path("/proc/sys/net/ipv4/conf")
_NEWROUTE, _DELROUTE, _GETROUTE, _NEWNETCONF = 24, 25, 26, 80
_GROUPS: Final = (1 << 6) | (1 << 23)  # RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_NETCONF
_BUFFER_BYTES: Final = MIB
_UNICAST, _LOCAL = 1, 2  # types of a route
_BY_KERNEL: Final = 2  # RTPROT_KERNEL: the network of an address, nobody's decision
_DST, _OIF, _MULTIPATH = 1, 4, 9
_RTMSG_BYTES, _NEXTHOP_BYTES, _NETCONF_BYTES = 12, 8, 4
_CONF_IFINDEX: Final = 1
_ALL: Final = -1  # NETCONFA_IFINDEX_ALL
_SO_NETNS_COOKIE: Final = 71
_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """The part of a route that shows where the host's peers are. ``indexes``: of the interfaces that it leads to."""

    kind: int
    protocol: int
    destination: str | None
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """``opened``: the interfaces that are open because of us; they are guarded, and closed in the end."""

    opened: frozenset[str]
    switch_on: frozenset[str]
    switch_off: frozenset[str]


def decide(
    *,
    is_router: bool,
    uplinks: Collection[str],
    opened: Collection[str],
    is_on: Mapping[str, bool],
    shared: Collection[str] = (),
) -> Decision:
    """Which uplinks to open and to close. Pure.

    ``is_router``: somebody has switched ip_forward on. ``opened``: by us, so far. ``is_on``: the switch of each interface
    that exists. ``shared``: opened by other depots; each depot that needs one counts as having opened it.
    """
    if is_router:
        return Decision(frozenset(), frozenset(), frozenset())
    wanted = [name for name in uplinks if name in is_on]
    ours = frozenset(name for name in wanted if name in opened or name in shared or not is_on[name])
    return Decision(
        ours,
        frozenset(name for name in ours if not is_on[name]),
        frozenset(name for name in opened if name not in (*ours, *shared) and is_on.get(name, False)),
    )


def parse_route(payload: bytes) -> Route | None:
    """The route in a message's payload (rtnetlink(7)). None: it is broken."""
    if len(payload) < _RTMSG_BYTES:
        return None
    found = attributes(payload[_RTMSG_BYTES:])
    to = found.get(_DST, b"")
    indexes = [struct.unpack("=i", found[_OIF])[0]] if len(found.get(_OIF, b"")) == 4 else []
    indexes += _nexthops(found.get(_MULTIPATH, b""))
    destination = socket.inet_ntoa(to) if len(to) == 4 else None
    return Route(payload[7], payload[5], destination, tuple(indexes))


def _nexthops(data: bytes) -> Iterator[int]:
    at = 0
    while at + _NEXTHOP_BYTES <= len(data):
        length, _, _, index = struct.unpack_from("=HBBi", data, at)
        if length < _NEXTHOP_BYTES:
            return
        yield index
        at += (length + 3) & ~3


def leads_out(route: Route, reached_at: str | None) -> bool:
    """Whether a route shows an uplink: one that somebody has set, or that of the address at which this host is reached."""
    if route.kind == _LOCAL:
        return reached_at is not None and route.destination == reached_at
    return route.kind == _UNICAST and route.protocol != _BY_KERNEL


class _Record(msgspec.Struct, frozen=True):
    """The record. With another boot or network namespace, its names are of other interfaces."""

    boot: str
    netns: int
    opened: dict[str, int] = {}  # name: index


@dataclass
class Forwarding:
    """Opens and closes uplinks. Made by `Networks`; ``guard`` makes the firewall guard exactly these uplinks.

    ``others``: where the other depots of this network namespace have recorded what they have opened.
    """

    uplinks: tuple[str, ...]
    reached_at: str | None
    file: Path | None
    guard: Callable[[frozenset[str]], Awaitable[None]]
    log: Log
    background: Background
    others: Callable[[], Collection[Path]] = tuple
    _opened: frozenset[str] = frozenset()
    _watch: RouteWatch | None = None
    _renewing: bool = False
    _again: bool = False
    _is_router: bool | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _indexes: frozenset[int] = field(default=frozenset())

    @property
    def is_started(self) -> bool:
        """Whether changes of others are followed."""
        return self._watch is not None

    def remembered(self) -> frozenset[str]:
        """The uplinks that a former manager opened and that still are the same interfaces."""
        return frozenset() if self.file is None else self._read(self.file)

    def _shared(self) -> frozenset[str]:
        """The uplinks that other depots have opened."""
        return frozenset(name for file in self.others() for name in self._read(file))

    def _read(self, file: Path) -> frozenset[str]:
        try:
            found = msgspec.json.decode(file.read_bytes(), type=_Record)
        except FileNotFoundError:
            return frozenset()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
            self.log.warning("forwarding_record_unreadable", path=str(file), error=str(e))
            return frozenset()
        if (found.boot, found.netns) != here():
            return frozenset()
        return frozenset(name for name, index in found.opened.items() if _index(name) == index)

    async def start(self) -> None:
        """Opens what is needed, and follows what others change from here on. FirewallError: it cannot be opened."""
        if self._watch is not None:
            return
        self._follow()
        try:
            async with self._turn:
                await self._renew()
        except OSError as e:
            raise FirewallError(f"forwarding: {e}") from e

    def try_again(self) -> None:
        """Tries in the background until it is done."""
        self._on_change()

    def _follow(self) -> None:
        self._watch = RouteWatch(asyncio.get_running_loop(), self._concerns, self._on_change)
        self._opened = self.remembered()

    def _concerns(self, kind: int, payload: bytes) -> bool:
        if kind == _NEWNETCONF:
            raw = attributes(payload[_NETCONF_BYTES:]).get(_CONF_IFINDEX, b"")
            return len(raw) == 4 and struct.unpack("=i", raw)[0] in (_ALL, *self._indexes)
        route = parse_route(payload) if kind in (_NEWROUTE, _DELROUTE) else None
        return route is not None and leads_out(route, self.reached_at)

    def _on_change(self) -> None:
        self._again = True
        if not self._renewing:
            self._renewing = True
            self.background.start(self._renew_while_asked(), name="forwarding")

    async def _renew_while_asked(self) -> None:
        try:
            while self._again:
                self._again = False
                try:
                    async with self._turn:
                        await self._renew()
                except (OSError, FirewallError) as e:
                    self.log.warning(
                        "forwarding_not_set_retrying", error=str(e), consequence="containers may be cut off"
                    )
                    self._again = True
                    await asyncio.sleep(_RETRY_S)
        finally:
            self._renewing = False

    async def _renew(self) -> None:
        """The guard stands before an interface is opened, and goes after it was closed."""
        is_router, uplinks, is_on, shared = await asyncio.to_thread(self._look)
        what = decide(is_router=is_router, uplinks=uplinks, opened=self._opened, is_on=is_on, shared=shared)
        if what.opened != self._opened or what.switch_on:
            if not is_router:
                await asyncio.to_thread(self._write_down, what.opened | what.switch_off)
                await self.guard(what.opened | what.switch_off)
            await asyncio.to_thread(_switch, dict.fromkeys(what.switch_on, "1"))
            await asyncio.to_thread(_switch, dict.fromkeys(what.switch_off, "0"))
            await asyncio.to_thread(self._write_down, what.opened)
        await self.guard(what.opened)
        self._opened = what.opened
        if not is_router:
            await asyncio.to_thread(_switch_on_own_links)
        if is_router is not self._is_router or what.switch_on or what.switch_off:
            self.log.info(
                "forwarding_set",
                opened=sorted(what.opened),
                closed=sorted(what.switch_off),
                by="others: ip_forward is on" if is_router else "us",
            )
        self._is_router = is_router

    def _look(self) -> tuple[bool, frozenset[str], dict[str, bool], frozenset[str]]:
        is_router = (_CONF / "all/forwarding").read_text().strip() == "1"
        names = frozenset(self.uplinks) or frozenset(_uplinks(self.reached_at))
        names -= {name for name in names if name == "lo" or name.startswith(INTERFACE_PREFIX)}
        looked_at = {name: _is_on(name) for name in names | self._opened}
        self._indexes = frozenset(filter(None, map(_index, names)))
        is_on = {name: on for name, on in looked_at.items() if on is not None}
        return is_router, names, is_on, self._shared()

    def _write_down(self, opened: frozenset[str]) -> None:
        if self.file is None:
            return
        boot, netns = here()
        record = _Record(boot, netns, {name: index for name in opened if (index := _index(name)) is not None})
        new = self.file.with_name(self.file.name + ".new")
        try:
            if not opened:
                self.file.unlink(missing_ok=True)
                return
            new.write_bytes(msgspec.json.encode(record))
            new.rename(self.file)
        except OSError as e:
            self.log.warning("forwarding_not_written_down", path=str(self.file), error=str(e))

    def stop_following(self) -> None:
        """Changes of others are ignored from now on. What is open stays open."""
        self._again = False
        if self._watch is not None:
            self._watch.close()

    async def give_back(self) -> None:
        """Closes what was opened here or by a former manager, unless another depot needs it. There are no containers any more."""
        if not self.is_started:
            self._opened = self.remembered()
        try:
            if (_CONF / "all/forwarding").read_text().strip() != "1":
                shared = await asyncio.to_thread(self._shared)
                await asyncio.to_thread(_switch, dict.fromkeys(self._opened - shared, "0"))
        except OSError as e:
            self.log.warning("forwarding_not_given_back", opened=sorted(self._opened), error=str(e))
            return
        await asyncio.to_thread(self._write_down, frozenset())


class RouteWatch:
    """Reports changes of routes and of forwarding switches. Made in a running loop, ended by :meth:`close`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        concerns: Callable[[int, bytes], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._loop, self._concerns, self._on_change = loop, concerns, on_change
        self._socket = listening(socket.NETLINK_ROUTE, groups=_GROUPS, buffer_bytes=_BUFFER_BYTES)
        loop.add_reader(self._socket, self._ready)

    def _ready(self) -> None:
        concerned = False
        try:
            for kind, payload in queued(self._socket):
                concerned |= self._concerns(kind, payload)
        except MessagesLost:
            concerned = True
        if concerned:
            self._on_change()

    def close(self) -> None:
        """Idempotent."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._socket.close()


def _uplinks(reached_at: str | None) -> Iterator[str]:
    """Names of uplinks, by all routing tables. OSError: the kernel refused."""
    for route in _routes():
        if leads_out(route, reached_at):
            for index in route.indexes:
                try:
                    yield socket.if_indextoname(index)
                except OSError:  # it went meanwhile
                    continue


def _routes() -> Iterator[Route]:
    with asking(socket.NETLINK_ROUTE) as asker:
        asker.send(message(_GETROUTE, REQUEST | DUMP, struct.pack("=B11x", socket.AF_INET)))
        for payload in dumped(asker, "routes"):
            if (route := parse_route(payload)) is not None:
                yield route


def _is_on(name: str) -> bool | None:
    """Whether it forwards. None: there is no such interface."""
    try:
        return (_CONF / name / "forwarding").read_text().strip() == "1"
    except OSError:
        return None


def _switch(wanted: Mapping[str, str]) -> None:
    for name, value in wanted.items():
        path = _CONF / name / "forwarding"
        try:
            if path.read_text().strip() != value:
                path.write_text(value)
        except FileNotFoundError:  # the interface went meanwhile
            continue


def _switch_on_own_links() -> None:
    _switch({name: "1" for _, name in socket.if_nameindex() if name.startswith(INTERFACE_PREFIX)})


def _index(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def here() -> tuple[str, int]:
    """This boot and this network namespace. The cookie is of one namespace as long as the kernel runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        raw = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), struct.unpack("=Q", raw)[0]
