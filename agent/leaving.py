"""How the agent leaves its pool: no new work (USR1), or none and an end when the apps are gone (USR2).

An agent that takes over from one that was leaving goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sized

from agent.announce import Announcer
from agent.instances.keeper import Keeper
from agent.logs import Log
from agent.memory import Phase
from agent.memory.agent import AgentMemory

EMPTY_LOOK_S = 0.2


class Leaving:
    """``end`` is called when the host is empty or the time is over; ``ending`` is set when it ends for another reason."""

    def __init__(
        self,
        memory: AgentMemory,
        keeper: Keeper,
        announcer: Announcer,
        stagings: Sized,
        *,
        bail_out_s: float,
        ending: asyncio.Event,
        end: Callable[[], None],
        log: Log,
    ) -> None:
        self._memory = memory
        self._keeper = keeper
        self._announcer = announcer
        self._stagings = stagings
        self._bail_out_s = bail_out_s
        self._ending = ending
        self._end = end
        self._log = log

    def leave_pool(self) -> None:
        if self._memory.head.phase is Phase.SERVING:
            self._memory.enter(Phase.OUT_OF_POOL)
        self._announcer.leave_pool()

    def begin_evacuation(self) -> bool:
        """False: it has been begun before. Else `end_when_empty` is due."""
        if self._keeper.evacuating:
            return False
        self._log.info("evacuation_begun")
        self._memory.enter(Phase.EVACUATING)
        self._keeper.evacuate()
        self._announcer.evacuate()
        return True

    async def end_when_empty(self) -> None:
        """When everything has been stopped by its controller, or the time is over (dea-bus.md 5.4)."""
        begun_s = max(0.0, time.time() - self._memory.head.since_s)  # perhaps by a former agent
        bail_out = time.monotonic() + max(0.0, self._bail_out_s - begun_s)
        while (self._keeper.busy() or len(self._stagings)) and time.monotonic() < bail_out:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EMPTY_LOOK_S):
                    await self._ending.wait()
            if self._ending.is_set():
                return
        self._end()
