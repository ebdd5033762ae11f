"""Notices OOM kills, by the event that each cgroup version has for them.

An event only starts a check; the kernel's counter of kills decides. v1 sends its event before the kill is counted, and
v2 sends one for every change of its event file. So a check that finds no new kill is repeated a few times, with growing
pauses.

On v1 each cgroup has an eventfd of its own. On v2 all cgroups share one inotify instance (:class:`SharedWatcher`): by
default the kernel lets a user have 128 of them, and a host may have more containers than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from container.aio import FileWatcher

#: Starts to call back at each event; returns the function that ends it.
Subscribe: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]
_NEXT_LOOKS_S: Final = (0.02, 0.1, 0.5, 2.0)


class OomWatch:
    """Calls ``callback`` once each time ``count`` has grown. Ends with ``stop``, or when the cgroup is found removed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        subscribe: Subscribe,
        count: Callable[[], int],
        callback: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._count = count
        self._callback = callback
        self._later: asyncio.TimerHandle | None = None
        self._seen = count()
        self._unsubscribe = subscribe(self._ready)

    def stop(self) -> None:
        """Idempotent."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._unsubscribe()

    def _ready(self) -> None:
        if self._later is not None:
            self._later.cancel()
        self._look(_NEXT_LOOKS_S)

    def _look(self, pauses_s: Sequence[float]) -> None:
        self._later = None
        try:
            now = self._count()
        except OSError:
            self.stop()  # the cgroup is gone
            return
        if now > self._seen:
            self._seen = now
            self._callback()
        elif pauses_s:
            self._later = self._loop.call_later(pauses_s[0], self._look, pauses_s[1:])


def follow_eventfd(
    loop: asyncio.AbstractEventLoop, fd: int, on_event: Callable[[], None]
) -> Callable[[], None]:
    """Calls back at each event. Closes ``fd`` in the end and on an error. Returns the idempotent function that ends it."""
    is_open = True

    def ready() -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        on_event()

    def stop() -> None:
        nonlocal is_open
        if is_open:
            is_open = False
            loop.remove_reader(fd)
            os.close(fd)

    try:
        loop.add_reader(fd, ready)
    except BaseException:
        os.close(fd)
        raise
    return stop


class SharedWatcher:
    """One `FileWatcher` for all subscribers. It is opened for the first one and closed after the last one."""

    def __init__(self) -> None:
        self._watcher: FileWatcher | None = None
        self._users = 0

    def start(self, path: Path, on_change: Callable[[], None]) -> Callable[[], None]:
        """As `FileWatcher.start`. OSError: also if the kernel refuses an inotify instance."""
        if self._watcher is None:
            self._watcher = FileWatcher()
        self._users += 1
        is_watching = True

        def leave() -> None:
            nonlocal is_watching
            if is_watching:
                is_watching = False
                end()
                self._leave()

        try:
            end = self._watcher.start(path, on_change)
        except BaseException:
            self._leave()
            raise
        return leave

    def _leave(self) -> None:
        self._users -= 1
        if not self._users and self._watcher is not None:
            self._watcher.close()
            self._watcher = None
