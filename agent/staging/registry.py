"""The stagings that this host knows: those under way, a few that ended, and the last failure of each app.

Data only. What happens to a staging is in keeper.py, what is published of it in replies.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from agent.output import AGENT, OutputChunk
from agent.staging.run import StagingRun
from agent.staging.task import StagingTask

#: Apps whose last failure is remembered; the oldest is forgotten first.
FAILURES_KEPT: Final = 256
#: Ended stagings whose output can still be read: a client that asks for the output of a quick staging comes after its end.
ENDED_KEPT: Final = 4


class StagingRegistry:
    """The length is the number of stagings under way."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._runs: list[StagingRun] = []
        self._added = asyncio.Event()
        self._ended: deque[StagingTask] = deque(maxlen=ENDED_KEPT)
        self._failures: dict[str, OutputChunk] = {}

    def __len__(self) -> int:
        return len(self.under_way())

    def add(self, run: StagingRun) -> None:
        """It begins."""
        self._runs.append(run)
        self._added.set()
        self._added = asyncio.Event()

    def remove(self, run: StagingRun) -> None:
        """It has ended, with its container; its output can be read for a while."""
        self._runs.remove(run)
        self._ended.append(run.task)

    def under_way(self) -> tuple[StagingRun, ...]:
        """Those whose last reply has not been published."""
        return tuple(run for run in self._runs if not run.over)

    def of_app(self, app_id: str) -> tuple[StagingRun, ...]:
        """Those of `under_way` that stage this app."""
        return tuple(run for run in self.under_way() if run.task.message.app_id == app_id)

    def find(self, task_id: str) -> StagingTask | None:
        """The newest one of that id, under way or ended."""
        tasks = (*self._ended, *(run.task for run in self._runs))
        return next((one for one in reversed(tasks) if one.message.task_id == task_id), None)

    async def wait_for(self, task_id: str, timeout_s: float) -> StagingTask | None:
        """As `find`, and waits for a staging that has not begun yet. None: it has not begun within ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                while (task := self.find(task_id)) is None:
                    await self._added.wait()
                return task
        except TimeoutError:
            return None

    def note_failure(self, app_id: str, line: str) -> None:
        """``line`` replaces what an earlier staging of the app left."""
        self._failures.pop(app_id, None)
        self._failures[app_id] = OutputChunk(AGENT, f"{line}\n".encode(), self._clock())
        while len(self._failures) > FAILURES_KEPT:
            del self._failures[next(iter(self._failures))]

    def note_success(self, app_id: str) -> None:
        """An earlier failure is of no interest any more."""
        self._failures.pop(app_id, None)

    def failure_of(self, app_id: str) -> OutputChunk | None:
        """The line for the app's log; None: its last staging did not fail, or that is long ago."""
        return self._failures.get(app_id)
