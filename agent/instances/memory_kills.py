"""Decides which kill for memory ended an app, and which one ended only one of its processes.

The kernel counts kills without naming a process, and the count lasts as long as the container. So a kill counts as the app's end
only if both happened together. A kill that the app's first process has survived for a while ended another process, and is reported
in the app's log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from agent.depot import AgentContainer
from agent.instances.process import Process
from container import EventKind, WrongState

#: How long a killed process may take to be gone, and a shell to end with its child.
SETTLE_S: Final = 5.0
REMARK: Final = "a process was killed: out of memory (the limit is {limit} MiB)"


class MemoryKills:
    """Follows one app from `watch` on. ``remark`` writes a line in the app's log.

    If the count cannot be read, no kill is assumed, and the exit is published as it was.
    """

    def __init__(
        self, limit_mb: int, container: AgentContainer, process: Process, remark: Callable[[str], None]
    ) -> None:
        self._limit_mb, self._container, self._process, self._remark = limit_mb, container, process, remark
        self._outlived = 0
        self._timers: set[asyncio.TimerHandle] = set()

    async def watch(self) -> None:
        """Runs until the container is gone, or it is cancelled."""
        try:
            if before := self._count():  # of an app's first moment, or while a former agent looked
                self._settle_later(before)
            async for event in self._container.events.subscribe():
                if event.kind is EventKind.OUT_OF_MEMORY:
                    self._remark(REMARK.format(limit=self._limit_mb))
                    self._settle_later(self._count())
        finally:
            for timer in self._timers:
                timer.cancel()

    def _settle_later(self, count: int) -> None:
        self._timers.add(asyncio.get_running_loop().call_later(SETTLE_S, self._settle, count))

    def _settle(self, count: int) -> None:
        if self._process.is_running:
            self._outlived = max(self._outlived, count)

    def came_with_the_end(self) -> bool:
        """Called when the process has ended: True if there was a kill that the process did not survive."""
        return self._count() > self._outlived

    def _count(self) -> int:
        try:
            return self._container.oom_kills()
        except (OSError, WrongState):
            return 0
