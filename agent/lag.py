"""Measures how long the event loop was blocked. Meanwhile the agent sends and handles nothing.

A task sleeps for `PAUSE_S` again and again, and measures how much too late it wakes: the gap. Times are CLOCK_MONOTONIC,
which all processes of a host share, so a gap can be compared with the measurements of another process. The kernel's
/proc/thread-self/schedstat tells a busy thread from a busy host: how long the thread ran, and how long it waited for a processor.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

from agent.logs import Log

PAUSE_S: Final = 0.02
#: Gaps from NOTED_S on are kept for the status, the newest KEPT of them. Those from LOGGED_S on are also logged.
NOTED_S: Final = 0.05
LOGGED_S: Final = 1.0
KEPT: Final = 1024


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which the loop was blocked. ``ended_s``: CLOCK_MONOTONIC. ``worked_s``: how long of it the thread ran.
    ``waited_s``: how long it was ready to run, but had no processor. For the rest it was blocked in a system call or by
    another thread of the agent, such as one that held Python's lock."""

    ended_s: float
    length_s: float
    worked_s: float
    waited_s: float


class LoopLag:
    """``gaps``: the newest `KEPT` gaps. ``longest_s``: the longest gap since the agent began."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.gaps: deque[Gap] = deque(maxlen=KEPT)
        self.longest_s = 0.0

    def status(self) -> dict[str, Any]:
        return {
            "loop_longest_gap_s": round(self.longest_s, 3),
            "loop_gaps": [astuple(one) for one in self.gaps],
        }

    async def run(self) -> None:
        """Measure without end; for `Supervisor.keep`."""
        while True:
            asked_s, (worked_s, waited_s) = time.monotonic(), _scheduled_s()
            await asyncio.sleep(PAUSE_S)
            late_s = time.monotonic() - asked_s - PAUSE_S
            if late_s >= NOTED_S:
                now = _scheduled_s()
                self.note(Gap(asked_s + PAUSE_S + late_s, late_s, now[0] - worked_s, now[1] - waited_s))

    def note(self, gap: Gap) -> None:
        self.gaps.append(gap)
        self.longest_s = max(self.longest_s, gap.length_s)
        if gap.length_s >= LOGGED_S:
            self._log.warning(
                "event_loop_blocked",
                for_s=round(gap.length_s, 3),
                worked_s=round(gap.worked_s, 3),
                without_processor_s=round(gap.waited_s, 3),
            )


def _scheduled_s() -> tuple[float, float]:
    """Seconds that this thread has run, and that it was ready but had no processor; 0 on a kernel without these statistics."""
    try:
        worked, waited, _ = Path("/proc/thread-self/schedstat").read_bytes().split()
        return int(worked) / 1e9, int(waited) / 1e9
    except (OSError, ValueError):
        return 0.0, 0.0
