"""Routes that were taken back, for as long as a router may still have them. Pure; the time comes in.

The server's acknowledgement is no router's. A router that was away keeps a dead route until it prunes it, 120 s after the last
register, or for as long as its bus is away. gorouter matches uri and host:port together, so such a route leads to
whatever app has the port by then. Two things follow:

* An unregister is repeated at each connect and each `router.start`, per uri and host:port, whoever has the port by then;
  only what is registered now is left out.
* A port rests: it has no new owner until a router that was there has pruned the route. The rest is counted from the barrier
  behind the unregister, and anew from each repeat until it is over.

After its rest an unregister is still repeated, for a router that was cut off for longer, but delays nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.bus.messages import RouterRegister, RouterUnregister

REST_S: Final = 120.0
#: A router's own threshold counts up to this; beyond it a single message could close all ports of a host.
REST_LIMIT_S: Final = 3600.0
#: What has rested is repeated for so long, and so many of it.
REPEATED_S: Final = 3600.0
REPEATED_MOST: Final = 1000


@dataclass(slots=True)
class _Gone:
    """``passed_at_s``: when the server last had it; None: not since the last connect or `router.start`.
    ``rested_at_s``: when the rest of its port was over; None: it goes on."""

    event: RouterUnregister
    rested_at_s: float | None
    passed_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """Numbers: whose port has rested now, and what is not repeated any more."""

    rested: tuple[int, ...]
    over: tuple[int, ...]


class Unregistered:
    """By the numbers of the outbox. ``rest_s``: of a port; only ever grows by what routers announce."""

    def __init__(self, rest_s: float = REST_S) -> None:
        self._rest_s = rest_s
        self._gone: dict[int, _Gone] = {}
        self._of_port: defaultdict[int, set[int]] = defaultdict(set)

    def set_prune_threshold(self, prune_s: float | None) -> None:
        """Of a router's `pruneThresholdInSeconds`."""
        if prune_s is not None:
            self._rest_s = max(self._rest_s, min(prune_s, REST_LIMIT_S))

    def add(self, number: int, event: RouterUnregister, *, rested_at_s: float | None = None) -> None:
        if event.uris:  # a worker's route is none
            self._gone[number] = _Gone(event, rested_at_s)
            self._of_port[event.port].add(number)

    def registered(self, message: RouterRegister) -> tuple[int, ...]:
        """What is registered now is not repeated. The numbers of what has nothing left to repeat."""
        empty = []
        for number in tuple(self._of_port.get(message.port, ())):
            one = self._gone[number]
            if one.event.host != message.host:
                continue
            left = tuple(uri for uri in one.event.uris if uri not in message.uris)
            if not left:
                empty.append(number)
                self.drop(number)
            elif left != one.event.uris:
                one.event = msgspec.structs.replace(one.event, uris=left)
        return tuple(empty)

    def passed(self, number: int, now_s: float) -> bool:
        """The server has it. False: it is not to be repeated, since all of it is registered again or it is over."""
        one = self._gone.get(number)
        if one is None:
            return False
        one.passed_at_s = now_s
        return True

    def repeat(self) -> Iterator[tuple[int, RouterUnregister]]:
        """All of it, oldest first, to be sent again; what rests begins its rest anew."""
        for number in sorted(self._gone):
            one = self._gone[number]
            one.passed_at_s = None
            yield number, one.event

    def rests(self, port: int, now_s: float) -> bool:
        """A route to the port may still stand somewhere."""
        return any(not self._has_rested(self._gone[number], now_s) for number in self._of_port.get(port, ()))

    def _has_rested(self, one: _Gone, now_s: float) -> bool:
        if one.rested_at_s is not None:
            return True
        return one.passed_at_s is not None and now_s - one.passed_at_s >= self._rest_s

    def sweep(self, now_s: float) -> Swept:
        """To be called now and then."""
        rested = [
            number
            for number, one in self._gone.items()
            if one.rested_at_s is None and self._has_rested(one, now_s)
        ]
        for number in rested:
            self._gone[number].rested_at_s = now_s
        done = sorted(
            (number, at_s) for number, one in self._gone.items() if (at_s := one.rested_at_s) is not None
        )
        over = [number for number, at_s in done[-REPEATED_MOST:] if now_s - at_s >= REPEATED_S]
        over = [number for number, _ in done[:-REPEATED_MOST]] + over
        for number in over:
            self.drop(number)
        return Swept(tuple(rested), tuple(over))

    def retain(self, is_kept: Callable[[int], bool]) -> None:
        """Only what the outbox has can ever pass a barrier."""
        for number in [number for number in self._gone if not is_kept(number)]:
            self.drop(number)

    def drop(self, number: int) -> None:
        """Idempotent."""
        if (one := self._gone.pop(number, None)) is not None:
            numbers = self._of_port[one.event.port]
            numbers.discard(number)
            if not numbers:
                del self._of_port[one.event.port]
