"""A reader's queue of instance changes.

A slow reader costs the agent nothing: the queue is bounded, and nobody waits for it. When it is full, its contents are replaced by
one `RESYNC`, and the reader looks at the registry again, which always has the newest state. A change says that something is
different, but not what: more may have happened before it is read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from agent.instances.instance import Instance

QUEUED: Final = 256


class Resync:
    """Changes were dropped, so the reader must look at the registry again."""


RESYNC: Final = Resync()


class InstanceChanges:
    """``of``: only changes of this instance; None: of all instances."""

    def __init__(self, of: Instance | None = None, *, queued: int = QUEUED) -> None:
        self._of = of
        self._queued = queued
        self._queue: deque[Instance | Resync] = deque()
        self._filled = asyncio.Event()

    def put(self, instance: Instance) -> None:
        if self._of is not None and instance is not self._of:
            return
        if len(self._queue) >= self._queued:
            self._queue.clear()
            self._queue.append(RESYNC)
        else:
            self._queue.append(instance)
        self._filled.set()

    async def next(self) -> Instance | Resync:
        """Returns the oldest unread change, and waits if there is none."""
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        return self._queue.popleft()

    def has_unread(self) -> bool:
        return bool(self._queue)
