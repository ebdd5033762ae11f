"""Events of a container: the kinds so far are kept, and each occurrence is published to subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """The kinds of events. Snapshots store the values, and clients of Warden read them."""

    OUT_OF_MEMORY = "out of memory"
    """The kernel killed a process of the container because it ran out of memory."""
    DEAD = "dead"
    """pid 1 is dead, and every process with it."""
    BROKEN = "broken"
    """Others have removed a piece of it that it cannot run without; `Container.broken` says which."""
    OVERRAN = "command exceeded maximum output"
    """A job with ``Past.KILL`` was killed because its output passed the limit."""


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """One event. ``at_s``: when, on the clock of the event loop."""

    kind: EventKind
    at_s: float


class Events:
    """The events of one container. ``kinds``: those of a former manager; unknown kinds of a later version are ignored."""

    def __init__(self, kinds: Iterable[str] = ()) -> None:
        known = {kind.value: kind for kind in EventKind}
        self._kinds = dict.fromkeys(known[kind] for kind in kinds if kind in known)
        self._subscribers: set[asyncio.Queue[ContainerEvent | None]] = set()
        self._closed = False

    @property
    def kinds(self) -> tuple[EventKind, ...]:
        """The kinds of events so far, in the order of their first occurrence."""
        return tuple(self._kinds)

    def publish(self, kind: EventKind) -> None:
        """Keep the kind and send the event to all subscribers. Only the manager calls this."""
        self._kinds[kind] = None
        event = ContainerEvent(kind, asyncio.get_running_loop().time())
        for queue in self._subscribers:
            queue.put_nowait(event)

    def close(self) -> None:
        """End all subscriptions, since the container is gone."""
        self._closed = True
        for queue in self._subscribers:
            queue.put_nowait(None)

    async def subscribe(self) -> AsyncGenerator[ContainerEvent, None]:
        """Yields events, from the first step of the iterator until the container is destroyed."""
        queue: asyncio.Queue[ContainerEvent | None] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            while not self._closed and (event := await queue.get()) is not None:
                yield event
        finally:
            self._subscribers.discard(queue)
