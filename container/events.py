"""What happens to a container: the kinds are kept, and each occurrence goes to the subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """The values are what snapshots keep and what Warden's clients read."""

    OUT_OF_MEMORY = "out of memory"
    """The kernel killed a process of the container for memory."""
    DEAD = "dead"
    """pid 1 is dead, and every process with it."""
    OVERRAN = "command exceeded maximum output"
    """A job with ``Past.KILL`` was killed for its output."""


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """``at_s`` is the time of the loop's clock."""

    kind: EventKind
    at_s: float


class Events:
    """Kinds are kept as a set; subscribers receive each occurrence. A kind that a later version wrote is ignored."""

    def __init__(self, kinds: Iterable[str] = ()) -> None:
        known = {kind.value: kind for kind in EventKind}
        self._kinds = dict.fromkeys(known[kind] for kind in kinds if kind in known)
        self._subscribers: set[asyncio.Queue[ContainerEvent | None]] = set()
        self._closed = False

    @property
    def kinds(self) -> tuple[EventKind, ...]:
        """What has happened so far, in the order of its first occurrence."""
        return tuple(self._kinds)

    def publish(self, kind: EventKind) -> None:
        """It has happened just now; for the manager itself."""
        self._kinds[kind] = None
        event = ContainerEvent(kind, asyncio.get_running_loop().time())
        for queue in self._subscribers:
            queue.put_nowait(event)

    def close(self) -> None:
        """The container is gone: subscriptions end."""
        self._closed = True
        for queue in self._subscribers:
            queue.put_nowait(None)

    async def subscribe(self) -> AsyncGenerator[ContainerEvent, None]:
        """Events from the first turn of the iterator on, until the container is destroyed."""
        queue: asyncio.Queue[ContainerEvent | None] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            while not self._closed and (event := await queue.get()) is not None:
                yield event
        finally:
            self._subscribers.discard(queue)
