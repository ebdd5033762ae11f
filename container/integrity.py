"""Looks periodically whether every process of a container still is in its cgroups.

A process outside is limited by nothing. Only root of the host can move it there: an operator's mistake, or a program that
takes the host's cgroups for its own. It is put back. If the cgroups were removed meanwhile, their limits and counts are
lost, and the container is reported as broken.

Each round looks at every pid 1, and at the descendants of as many containers as fit into the budget, in turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final
from weakref import WeakKeyDictionary

from container.aio import Log
from container.body import Body
from container.cgroups import strays

REMOVED: Final = "its cgroup was removed"
#: How much of a round may be spent on descendants, in seconds.
_BUDGET_S: Final = 0.004
#: Texts of /proc/PID/cgroup that were right, of one container: one of each leaf, and those of processes on their way.
_MOST_TEXTS: Final = 8
#: After so many containers other tasks get their turn.
_AT_ONCE: Final = 32


class Integrity:
    """``containers``: returns those that the depot has now. ``period_s``: from one round to the next."""

    def __init__(self, containers: Callable[[], Iterable[Body]], log: Log, *, period_s: float = 0.8) -> None:
        self._containers, self._log, self._period_s = containers, log, period_s
        self._known: WeakKeyDictionary[Body, set[bytes]] = WeakKeyDictionary()
        self._turn = 0

    async def run(self) -> None:
        """Runs for ever. An error ends only the look at its container in this round, and is logged."""
        while True:
            began_s = time.monotonic()
            await self._look_at([one for one in self._containers() if self._is_whole(one)])
            await asyncio.sleep(max(self._period_s / 2, began_s + self._period_s - time.monotonic()))

    async def _look_at(self, bodies: list[Body]) -> None:
        """``_turn``: where the last round's walks have ended. A walk has looked at pid 1 too."""
        turn = self._turn % len(bodies) if bodies else 0
        in_turn = bodies[turn:] + bodies[:turn]
        walked, spent_s = 0, 0.0
        while walked < len(in_turn) and spent_s < _BUDGET_S:
            began_s = time.monotonic()
            self._guarded(in_turn[walked], self._walk)
            spent_s += time.monotonic() - began_s
            walked += 1
            await asyncio.sleep(0)
        self._turn = turn + walked
        for count, body in enumerate(in_turn[walked:], 1):
            self._guarded(body, self._look)
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)

    @staticmethod
    def _is_whole(body: Body) -> bool:
        return body.can_be_asked and not body.broken

    def _guarded(self, body: Body, what: Callable[[Body], None]) -> None:
        try:
            if self._is_whole(body):  # it may have ended since the round began
                what(body)
        except FileNotFoundError:
            if body.on_broken(REMOVED):
                self._log.warning("container_broken", handle=body.handle, why=REMOVED)
        except Exception as e:  # the outermost frame of a look: it costs this container's round only
            self._log.warning("processes_not_looked_at", handle=body.handle, error=repr(e))

    def _look(self, body: Body) -> None:
        if not strays.is_inside(body.cgroup, body.parts.pid, self._texts_of(body)):
            self._walk(body)

    def _texts_of(self, body: Body) -> set[bytes]:
        known = self._known.setdefault(body, set())
        if len(known) > _MOST_TEXTS:
            known.clear()
        return known

    def _walk(self, body: Body) -> None:
        for stray in strays.walk(body.cgroup, body.parts.pid, self._texts_of(body)):
            if stray is not None:
                strays.put_back(body.cgroup, stray)
                self._log.warning("process_put_back_into_cgroup", handle=body.handle, pid=stray.pid)
