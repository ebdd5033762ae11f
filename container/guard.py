"""Checks each pid 1 periodically: does it still reply, and which jobs have ended?

If wshd is stopped or starved, its jobs run on, but nobody reaps them, moves their output or can stop them. So a wshd that has
been silent for too long is killed with its container, and its jobs count as ended. The request is `list`, which every wshd
supports. Its reply also names ended jobs whose record could not be written (on a file system that became read-only).
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
#: Requests without a reply before a kill, however long they took: the manager itself may have been stopped meanwhile.
_ASKED_AT_LEAST: Final = 2


@dataclass(slots=True)
class _Silence:
    since_s: float
    asked: int = 0


class Guard:
    """``containers``: returns those that the depot has now. ``period_s``: the time from one round to the next, and the
    longest time for a reply. ``patience_s``: how long a pid 1 may be silent before its container is killed.
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
        """Runs for ever. An error ends only the check of its container in this round, and is logged."""
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
            if container in self._silent:  # without a slot: a silent one must not delay the others
                await container.jobs.look(self._period_s)
            else:
                async with slots:
                    asked_s = time.monotonic()
                    await container.jobs.look(self._period_s)
        except WshdSilent:
            await self._note_silence(container, asked_s)
        except (WshdGone, WshdError):  # it died just now, or it refused, and a refusal is a reply too
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
