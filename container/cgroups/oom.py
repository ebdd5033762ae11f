"""The watch on OOM kills, over whatever descriptor a back end is told by.

The descriptor says "look", the kernel's count says what happened. v1 tells of the attempt, before the kill is counted;
v2 of every change of its events. So a look that finds nothing new is repeated a few times, ever later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Final

_NEXT_LOOKS_S: Final = (0.02, 0.1, 0.5, 2.0)


class OomWatch:
    """Calls ``callback`` once for each rise of ``count``. Owns ``fd``; ends with ``stop``, or with a look at a cgroup that is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        count: Callable[[], int],
        callback: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._count = count
        self._callback = callback
        self._later: asyncio.TimerHandle | None = None
        try:
            self._seen = count()
            loop.add_reader(fd, self._ready)
        except BaseException:
            os.close(fd)
            raise

    def stop(self) -> None:
        """Idempotent."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ready(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 4096)
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
