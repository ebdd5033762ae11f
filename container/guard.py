"""Looks after each pid 1: does it still answer, and what does it know of its jobs?

A wshd that is stopped or starved leaves its jobs running with nobody who sees its end, moves its output or stops it. One that has
answered nothing for so long is killed with its container, so that the end is known. The request is `list`, which every wshd has: it
lists ended jobs as well, also where the record of an end could not be written (a file system that has become read-only).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from container.aio import Log
from container.body import Body
from container.wshd import WshdError, WshdGone, WshdSilent

_AT_ONCE: Final = 16
#: However long one took: a manager that was itself stopped for a while has asked only once.
_ASKED_AT_LEAST: Final = 2


@dataclass(slots=True)
class _Silence:
    since_s: float
    asked: int = 0


class Guard:
    """``containers``: those of the depot now. ``period_s``: between two rounds, and how long an answer may take.
    ``patience_s``: of silence, until a container is killed.
    """

    def __init__(
        self, containers: Callable[[], Iterable[Body]], log: Log, *, period_s: float, patience_s: float
    ) -> None:
        self._containers = containers
        self._log = log
        self._period_s = period_s
        self._patience_s = patience_s
        self._silent: dict[Body, _Silence] = {}

    async def run(self) -> None:
        """For ever. An error costs its own container's turn."""
        while True:
            began_s = time.monotonic()
            slots = asyncio.Semaphore(_AT_ONCE)
            containers = [one for one in self._containers() if one.can_be_asked]
            for gone in set(self._silent) - set(containers):
                del self._silent[gone]
            results = await asyncio.gather(
                *(self._look(one, slots) for one in containers), return_exceptions=True
            )
            for container, result in zip(containers, results, strict=True):
                if isinstance(result, Exception):
                    self._log.warning("guard_failed", handle=container.handle, error=repr(result))
            await asyncio.sleep(max(0.0, began_s + self._period_s - time.monotonic()))

    async def _look(self, container: Body, slots: asyncio.Semaphore) -> None:
        asked_s = time.monotonic()
        try:
            if container in self._silent:  # nobody waits behind one that is known to be silent
                await container.jobs.look(self._period_s)
            else:
                async with slots:
                    asked_s = time.monotonic()
                    await container.jobs.look(self._period_s)
        except WshdSilent:
            await self._note_silence(container, asked_s)
        except (WshdGone, WshdError):  # it dies just now; or it refuses, which is an answer too
            self._silent.pop(container, None)
        else:
            if self._silent.pop(container, None) is not None:
                self._log.info("container_answers_again", handle=container.handle)

    async def _note_silence(self, container: Body, asked_s: float) -> None:
        silence = self._silent.setdefault(container, _Silence(asked_s))
        silence.asked += 1
        silent_s = time.monotonic() - silence.since_s
        if silent_s < self._patience_s or silence.asked < _ASKED_AT_LEAST:
            self._log.warning("container_silent", handle=container.handle, for_s=round(silent_s, 1))
            return
        self._log.warning("container_silent_killed", handle=container.handle, for_s=round(silent_s, 1))
        await container.kill_by_cgroup()
