"""The count of the controller's changes, and the wait for the next one.

A change says that something may be different, not what: a reader looks at everything again. It remembers the number before it
looks and waits for another one afterwards, so that no change in between is lost.
"""

from __future__ import annotations

import asyncio
import contextlib


class ChangeCount:
    def __init__(self) -> None:
        self.number = 0
        self._next = asyncio.Event()

    def add(self) -> None:
        self.number += 1
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, known: int, timeout_s: float) -> None:
        """Until the number is another than ``known``, or the time is over."""
        if self.number == known:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._next.wait()
