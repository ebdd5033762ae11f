"""How long the event loop stood still: no heartbeat, no command, no answer leaves meanwhile.

A task sleeps for a moment, again and again, and looks how much later it was woken. Times are CLOCK_MONOTONIC, which all
processes of a host share, so that a gap can be compared with what another process saw at the same time. How much of a gap
the thread waited for a processor that others had, and how much it worked, are the kernel's figures (/proc/PID/schedstat).
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
#: What is kept, and what is worth a line in the log.
NOTED_S: Final = 0.05
LOGGED_S: Final = 1.0
KEPT: Final = 1024


@dataclass(frozen=True, slots=True)
class Gap:
    """``ended_s``: CLOCK_MONOTONIC. ``worked_s``: the part in which the thread ran; ``waited_s``: in which it could have,
    and others had the processor. The rest it slept, in the kernel or until a thread of ours let it go on."""

    ended_s: float
    length_s: float
    worked_s: float
    waited_s: float


class LoopLag:
    """``run`` measures; ``gaps`` are the newest ones."""

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
        """For `Supervisor.keep`: for ever."""
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
                "event_loop_stood_still",
                for_s=round(gap.length_s, 3),
                worked_s=round(gap.worked_s, 3),
                without_processor_s=round(gap.waited_s, 3),
            )


def _scheduled_s() -> tuple[float, float]:
    """Of this thread so far: time on a processor, and time that it waited for one; 0 on a kernel without these statistics."""
    try:
        worked, waited, _ = Path("/proc/thread-self/schedstat").read_bytes().split()
        return int(worked) / 1e9, int(waited) / 1e9
    except (OSError, ValueError):
        return 0.0, 0.0
