"""Removals that failed, each tried again until it has succeeded: leases, a handle, a disk of the host hang on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from container.aio import Background, Log

_FIRST_S: Final = 1.0
_LAST_S: Final = 60.0


class Retries:
    """By handle; ever more slowly, and never given up while the manager lives. A next start removes what is left."""

    def __init__(self, background: Background, log: Log) -> None:
        self._background = background
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopped = False

    def __contains__(self, handle: str) -> bool:
        return handle in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, handle: str, attempt: Callable[[], Awaitable[None]]) -> None:
        """One that is being tried already goes on as it is. After `stop`: nothing, the next start removes it."""
        if handle not in self._tasks and not self._stopped:
            work = self._until_gone(handle, attempt)
            self._tasks[handle] = self._background.start(work, name=f"remove-again-{handle}")

    def drop(self, handle: str) -> None:
        """It is gone by another's doing. Idempotent."""
        if (task := self._tasks.pop(handle, None)) is not None:
            task.cancel()

    def stop(self) -> None:
        """For good: what fails from now on, while the manager lets go, is not tried by a manager that has gone."""
        self._stopped = True
        for task in self._tasks.values():
            task.cancel()

    async def _until_gone(self, handle: str, attempt: Callable[[], Awaitable[None]]) -> None:
        pause_s = _FIRST_S
        try:
            while True:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_S)
                try:
                    return await attempt()
                except Exception as e:  # whatever it was: the next try may have it
                    self._log.warning(
                        "container_not_removed_trying_again", handle=handle, error=repr(e), after_s=pause_s
                    )
        finally:
            if self._tasks.get(handle) is asyncio.current_task():
                del self._tasks[handle]
