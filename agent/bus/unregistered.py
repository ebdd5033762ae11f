"""Unregistered routes that some router may still have. Pure; the caller passes the time.

The PONG of the server does not prove that routers received an unregister. A router that was away keeps a dead route until it
prunes it: 120 s after the last register by default, or for as long as its connection to the bus is down. Such a route leads to
whichever app has the host port by then. So there are two rules:

* An unregister is repeated at each connect and each `router.start`, even if another app has the port by then. gorouter
  compares uri and host:port together, so it does not remove the routes of that app. Pairs that are registered again are left out.
* A port rests: it gets no new owner until every router that is connected must have pruned the route. The rest is counted from the
  barrier after the unregister, and starts again at each repeat until it is over.

After the rest an unregister is still repeated for a while, for routers that were cut off for longer, but its port is free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.bus.messages import RouterRegister, RouterUnregister

REST_S: Final = 120.0
#: The longest rest that a router's threshold can demand. Without a limit a single message could block all ports of a host.
REST_LIMIT_S: Final = 3600.0
#: Unregisters whose port has rested are repeated for this time, and at most so many of them.
REPEATED_S: Final = 3600.0
REPEATED_MOST: Final = 1000


@dataclass(slots=True)
class _Gone:
    """An unregister to repeat. Times are monotonic seconds.

    ``passed_at_s``: when the barrier after its latest repeat passed; None: not yet. ``rested_at_s``: when the rest of its port
    ended; None: the port still rests.
    """

    event: RouterUnregister
    rested_at_s: float | None
    passed_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """Numbers of the unregisters whose port has rested now (``rested``), and of those that are no longer repeated (``over``)."""

    rested: tuple[int, ...]
    over: tuple[int, ...]


class Unregistered:
    """The unregisters to repeat, by their numbers in the outbox. ``rest_s``: how long a port rests; routers can only raise it."""

    def __init__(self, rest_s: float = REST_S) -> None:
        self._rest_s = rest_s
        self._gone: dict[int, _Gone] = {}
        self._of_port: defaultdict[int, set[int]] = defaultdict(set)

    def set_prune_threshold(self, prune_s: float | None) -> None:
        """Takes a router's `pruneThresholdInSeconds` as the rest, if it is longer and at most REST_LIMIT_S."""
        if prune_s is not None:
            self._rest_s = max(self._rest_s, min(prune_s, REST_LIMIT_S))

    def add(self, number: int, event: RouterUnregister, *, rested_at_s: float | None = None) -> None:
        if event.uris:  # an app without routes has nothing to repeat
            self._gone[number] = _Gone(event, rested_at_s)
            self._of_port[event.port].add(number)

    def registered(self, message: RouterRegister) -> tuple[int, ...]:
        """Stops repeating the routes that are registered now. Returns the numbers of unregisters without any route left."""
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
        """Notes that the unregister's barrier has passed. False: it is not repeated any more."""
        one = self._gone.get(number)
        if one is None:
            return False
        one.passed_at_s = now_s
        return True

    def repeat(self) -> Iterator[tuple[int, RouterUnregister]]:
        """The unregisters to send again, oldest first. Each port that still rests starts its rest again."""
        for number in sorted(self._gone):
            one = self._gone[number]
            one.passed_at_s = None
            yield number, one.event

    def rests(self, port: int, now_s: float) -> bool:
        """True while a connected router may still have a route to the port."""
        return any(not self._has_rested(self._gone[number], now_s) for number in self._of_port.get(port, ()))

    def _has_rested(self, one: _Gone, now_s: float) -> bool:
        if one.rested_at_s is not None:
            return True
        return one.passed_at_s is not None and now_s - one.passed_at_s >= self._rest_s

    def sweep(self, now_s: float) -> Swept:
        """Ends rests and repetitions that are over. Call it periodically."""
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
        """Drops unregisters that the outbox no longer has. They can pass no barrier, so their ports would rest for ever."""
        for number in [number for number in self._gone if not is_kept(number)]:
            self.drop(number)

    def drop(self, number: int) -> None:
        """Stops repeating an unregister and ends its rest. Idempotent."""
        if (one := self._gone.pop(number, None)) is not None:
            numbers = self._of_port[one.event.port]
            numbers.discard(number)
            if not numbers:
                del self._of_port[one.event.port]
