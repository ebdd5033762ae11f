"""Leases of addresses, user ids and ports (docs/network.md, "Addresses and ports"). Pure but for the clock that is passed in.

A pool is a queue. It gives out the entry that was freed longest ago, and not before that has rested. Nothing is stored
here. After a restart the snapshots in the depot name what is in use, and rotation.py restores the order of the rest.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from container.errors import ContainerError

#: Ids of one container. The last one is wshd's own and is not mapped inside.
IDS_PER_CONTAINER: Final = 65536

T = TypeVar("T")


class NoLease(ContainerError, RuntimeError):
    """A pool is used up. ``kind``: what it is a pool of (address, ids, port)."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__(f"no free {kind}: all {size} are in use or resting")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class AddressLease:
    """A network of four addresses (/30): the host's end and the container's. All are texts."""

    network: str
    host_ip: str
    container_ip: str

    @classmethod
    def of(cls, network: ipaddress.IPv4Network) -> AddressLease:
        """The first usable address is the host's, the second the container's."""
        return cls(str(network), str(network[1]), str(network[2]))


@dataclass(frozen=True, slots=True)
class IdLease:
    """The host's user and group ids ``first`` to ``first + 65535``."""

    first: int


class LeasePool(Generic[T]):
    """A fixed set of entries, each free, taken or resting. ``rest_s``: seconds; ``now_s``: a monotonic clock."""

    def __init__(
        self, kind: str, entries: Iterable[T], *, rest_s: float = 0.0, now_s: Callable[[], float]
    ) -> None:
        self.kind = kind
        self.last: T | None = None
        """The entry that was given out last."""
        self._now_s = now_s
        self._rest_s = rest_s
        self._free: deque[tuple[T, float]] = deque((entry, float("-inf")) for entry in entries)
        self._order = tuple(entry for entry, _ in self._free)
        self._all = frozenset(self._order)
        self._taken: set[T] = set()
        self._on_release: Callable[[], None] = lambda: None

    def on_release(self, call: Callable[[], None]) -> None:
        """``call`` is called after each entry that was given back."""
        self._on_release = call

    def take(self, is_usable: Callable[[T], bool] = lambda _: True) -> T:
        """The entry that was freed longest ago, of those that have rested and are usable. NoLease: there is none."""
        now_s = self._now_s()
        for index, (entry, rested_at_s) in enumerate(self._free):
            if rested_at_s <= now_s and is_usable(entry):
                del self._free[index]
                self._taken.add(entry)
                self.last = entry
                return entry
        raise NoLease(self.kind, len(self._all))

    def claim(self, entry: T) -> bool:
        """Takes exactly this entry, after a restart. False: it is not of this pool, or it is taken."""
        if not self._remove_free(entry):
            return False
        self._taken.add(entry)
        return True

    def _remove_free(self, entry: T) -> bool:
        for index, (free, _) in enumerate(self._free):
            if free == entry:
                del self._free[index]
                return True
        return False

    def give_back(self, entry: T) -> None:
        """Begins the entry's rest. Idempotent. An entry of another pool is ignored: the settings may have changed."""
        if entry in self._taken:
            self._taken.remove(entry)
            self._free.append((entry, self._now_s() + self._rest_s))
            self._on_release()

    def postpone(self, entry: T) -> None:
        """Gives back an entry that could not be used: without a rest, behind all others."""
        self._taken.discard(entry)
        self._free.append((entry, self._now_s()))

    def rest(self, entry: T) -> None:
        """As if it had been taken and given back here: a former manager's container had it."""
        if self.claim(entry):
            self.give_back(entry)

    def resting(self) -> Iterator[tuple[T, float]]:
        """(entry, seconds left) of all that rest."""
        now_s = self._now_s()
        return ((entry, at_s - now_s) for entry, at_s in self._free if at_s > now_s)

    def restore(self, last: T | None, resting: Mapping[T, float]) -> None:
        """Goes on behind ``last``. What rests (seconds left, at most a whole rest) comes at the end.

        Before anything is taken.
        """
        begin = self._order.index(last) + 1 if last is not None else 0
        ring = self._order[begin:] + self._order[:begin]
        now_s = self._now_s()
        left = sorted(resting.items(), key=lambda one: one[1])
        self._free = deque((entry, float("-inf")) for entry in ring if entry not in resting)
        self._free.extend((entry, now_s + min(left_s, self._rest_s)) for entry, left_s in left)
        self.last = last

    @property
    def entries(self) -> frozenset[T]:
        """All, in whatever state."""
        return self._all

    @property
    def in_use(self) -> frozenset[T]:
        """Entries that are taken."""
        return frozenset(self._taken)

    def __repr__(self) -> str:
        return f"<LeasePool {self.kind} free={len(self._free)} taken={len(self._taken)}>"


def address_leases(pool_network: str) -> list[AddressLease]:
    """Each /30 of the network. ValueError: it is none, or smaller than that."""
    network = ipaddress.IPv4Network(pool_network, strict=False)
    if network.prefixlen > 30:
        raise ValueError(f"pool_network: expected /30 or wider, got {pool_network}")
    return [AddressLease.of(subnet) for subnet in network.subnets(new_prefix=30)]


def has_address(address: str | None) -> Callable[[AddressLease], bool]:
    """A predicate for `LeasePool.take`: the lease of the /30 around ``address``; None: any lease. ValueError: it is no address."""
    if address is None:
        return lambda _: True
    wanted = str(ipaddress.IPv4Network(f"{address}/30", strict=False))
    return lambda lease: lease.network == wanted


def id_leases(first: int, count: int) -> list[IdLease]:
    """``count`` ranges of 65,536 ids from ``first``. ValueError: beyond the kernel's ids."""
    last = first + count * IDS_PER_CONTAINER - 1
    if first < 1 or count < 1 or last > 0xFFFF_FFFE:
        raise ValueError(f"user ids: expected ranges within 1..4294967294, got {first}..{last}")
    return [IdLease(first + index * IDS_PER_CONTAINER) for index in range(count)]


_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"


def encode_id(number: int) -> str:
    """11 characters of [0-9a-v]: 55 bits, so that an interface name (15 characters) can hold it."""
    return "".join(_DIGITS[(number >> shift) & 31] for shift in range(50, -1, -5))


class IdSource:
    """Ids from a counter that begins at the time in microseconds, so that a restart does not repeat one."""

    def __init__(self, start_us: int) -> None:
        self._next = start_us

    def take(self) -> str:
        """The next id."""
        self._next += 1
        return encode_id(self._next)
