"""Ports of the host, each reserved by a socket that is bound and never listens (docs/network.md, "Addresses and ports").

DNAT takes packets before any socket sees them, so the reservation disturbs nothing. A later listener of the host gets
EADDRINUSE instead of silently losing its traffic.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from pathlib import Path

from container.errors import ContainerError
from container.pools import LeasePool, NoLease
from container.spec import PortMapping, Protocol

LAST_PORT = 65000
LEAST_PORTS = 1000


class PortTaken(ContainerError, RuntimeError):
    """Another process listens there, or the port is published already; the text says which."""


class NoPorts(ContainerError, RuntimeError):
    """The pool of host ports is used up, or is too small from the start."""


def pool_range(first: int, count: int, ephemeral: str) -> range:
    """The pool as configured. ``first`` 0: from above the ephemeral ports; ``count`` 0: to port 65000. Pure.

    ``ephemeral``: the text of ip_local_port_range. NoPorts: it leaves fewer than 1,000.
    """
    if not first:
        first = int(ephemeral.split()[1]) + 1
        if LAST_PORT - first + 1 < LEAST_PORTS:
            raise NoPorts(
                f"port: expected {LEAST_PORTS} free above the ephemeral ones, which end at {first - 1}"
            )
    end = first + count if count else LAST_PORT + 1
    return range(first, min(end, 65536))


def pool_of_host(first: int, count: int) -> range:
    """As `pool_range`, with the ephemeral range of this network namespace. NoPorts, OSError."""
    return pool_range(first, count, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text())


def _bind(protocol: Protocol, port: int) -> socket.socket:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    try:
        held = socket.socket(socket.AF_INET6, kind | socket.SOCK_CLOEXEC)
        address: tuple[str, int] = ("::", port)
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError:  # a host without IPv6
        held = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
        address = ("0.0.0.0", port)  # noqa: S104  (a reservation holds every address)
    try:
        held.bind(address)
    except OSError as e:
        held.close()
        if e.errno == errno.EADDRINUSE:
            raise PortTaken(f"host port {port}/{protocol.value}: in use") from e
        raise
    return held


class HostPorts:
    """The pool of host ports, and the reservations. ``rests``: whether the caller has a reason not to give out a port yet."""

    def __init__(
        self,
        pool: range,
        *,
        rest_s: float = 0.0,
        rests: Callable[[int], bool] = lambda _: False,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = LeasePool("port", pool, rest_s=rest_s, now_s=now_s)
        self._range = pool
        self._rests = rests
        self._held: dict[tuple[Protocol, int], socket.socket | None] = {}

    @classmethod
    def of_host(
        cls, first: int, count: int, *, rest_s: float = 0.0, rests: Callable[[int], bool] = lambda _: False
    ) -> HostPorts:
        """With the ephemeral range of this host. NoPorts."""
        return cls(pool_of_host(first, count), rest_s=rest_s, rests=rests)

    def take(self, mapping: PortMapping) -> PortMapping:
        """Reserves a port of the host. Returns the mapping with both ports filled in. PortTaken, NoPorts, OSError.

        A port that is asked for by number is given also while it rests: the caller knows why.
        """
        if mapping.host_port is not None:
            host_port = mapping.host_port
            self._reserve(mapping.protocol, host_port)
            self.pool.claim(host_port)
        else:
            host_port = self._next(mapping.protocol)
        return PortMapping(mapping.protocol, host_port, mapping.container_port or host_port)

    def _reserve(self, protocol: Protocol, port: int) -> None:
        if (protocol, port) in self._held:
            raise PortTaken(f"host port {port}/{protocol.value}: published already")
        self._held[protocol, port] = _bind(protocol, port)

    def _next(self, protocol: Protocol) -> int:
        tried: set[int] = set()

        def is_usable(port: int) -> bool:
            return port not in tried and not self._rests(port)

        while True:
            try:
                port = self.pool.take(is_usable)
            except NoLease as e:
                raise NoPorts(
                    f"port: all {len(self._range)} of {self._range.start}-{self._range.stop - 1} are in use or resting"
                ) from e
            try:
                self._reserve(protocol, port)
            except PortTaken:
                self.pool.postpone(port)  # the host has a listener there, or a TIME_WAIT
                tried.add(port)
                continue
            return port

    def claim(self, mapping: PortMapping) -> bool:
        """Takes up a mapping of a former manager. False: the host has a listener there by now; the mapping stays."""
        assert mapping.host_port is not None
        self.pool.claim(mapping.host_port)
        try:
            self._held[mapping.protocol, mapping.host_port] = _bind(mapping.protocol, mapping.host_port)
        except PortTaken:
            self._held[mapping.protocol, mapping.host_port] = None
            return False
        return True

    def rest(self, mapping: PortMapping) -> None:
        """Begins the rest of a port whose container, of a former manager, is gone."""
        if mapping.host_port is not None:
            self.pool.rest(mapping.host_port)

    def give_back(self, mapping: PortMapping) -> None:
        """Ends the reservation and begins the port's rest. Idempotent."""
        assert mapping.host_port is not None
        key = (mapping.protocol, mapping.host_port)
        if key not in self._held:
            return
        held = self._held.pop(key)
        if held is not None:
            held.close()
        if not any(port == mapping.host_port for _, port in self._held):
            self.pool.give_back(mapping.host_port)

    def close(self) -> None:
        """Ends all reservations."""
        for held in self._held.values():
            if held is not None:
                held.close()
        self._held.clear()
