"""The count of the controller's changes, and the wait for the next one.

A change means that something may be different; a reader must look at everything again. It remembers the number before it looks,
and then waits for another number, so that a change in between is not lost.
"""

from __future__ import annotations

import asyncio
import contextlib


class ChangeCount:
    """``number``: how many changes there were."""

    def __init__(self) -> None:
        self.number = 0
        self._next = asyncio.Event()

    def add(self) -> None:
        self.number += 1
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, known: int, timeout_s: float) -> None:
        """Waits until the number is not ``known`` any more, or the time is over."""
        if self.number == known:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._next.wait()
