"""What happens to a container: kept, and told to subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

OUT_OF_MEMORY: Final = "out of memory"
DEAD: Final = "dead"
OVERRAN: Final = "command exceeded maximum output"


@dataclass(frozen=True, slots=True)
class Event:
    """``at`` is the time of the loop's clock, in seconds."""

    kind: str
    at: float


class Events:
    """Kinds are a set, as Warden has it (D.7); subscribers hear of each occurrence."""

    def __init__(self, kinds: tuple[str, ...] = ()) -> None:
        self._kinds = dict.fromkeys(kinds)
        self._subscribers: set[asyncio.Queue[Event | None]] = set()
        self._closed = False

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._kinds)

    def tell(self, kind: str) -> None:
        self._kinds[kind] = None
        event = Event(kind, asyncio.get_running_loop().time())
        for queue in self._subscribers:
            queue.put_nowait(event)

    def close(self) -> None:
        """The container is gone: subscriptions end."""
        self._closed = True
        for queue in self._subscribers:
            queue.put_nowait(None)

    async def subscribe(self) -> AsyncGenerator[Event, None]:
        """Events from the first turn of the iterator on, until the container is destroyed."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            while not self._closed and (event := await queue.get()) is not None:
                yield event
        finally:
            self._subscribers.discard(queue)
