"""Fair download slots: a limited number of downloads at once, of which no app can occupy all.

Two rules keep one app from delaying the others. Free slots are given round-robin to the apps that wait, not in order of arrival.
An app gets at most half of the slots, but at least one, so slow downloads of one app leave slots for others.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSlots:
    def __init__(self, count: int) -> None:
        self._free = count
        self._most_each = max(1, count // 2)
        self._held: Counter[str] = Counter()
        #: By owner, in the order in which they get the next slot.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def taken(self, owner: str) -> AsyncIterator[None]:
        """Waits for a slot. Within the block the owner holds it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(owner, turn)
            else:  # the slot was given in the same moment as the cancellation
                self._take_back(owner)
            raise
        try:
            yield
        finally:
            self._take_back(owner)

    def _give(self) -> None:
        while self._free and (owner := self._next()) is not None:
            turns = self._waiting.pop(owner)
            turn = turns.popleft()
            if turns:
                self._waiting[owner] = turns  # at the end: the other apps come first
            if turn.cancelled():
                continue
            self._free -= 1
            self._held[owner] += 1
            turn.set_result(None)

    def _next(self) -> str | None:
        return next((owner for owner in self._waiting if self._held[owner] < self._most_each), None)

    def _take_back(self, owner: str) -> None:
        self._free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._give()

    def _forget(self, owner: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(owner)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[owner]
