"""Takes the host out of the pool (USR1), or evacuates it (USR2).

Out of the pool, the host advertises nothing and its apps run on. An evacuation also has the apps replaced on other hosts, and
ends the agent when all have ended or the time is over. The memory records both, so the next agent continues them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sized

from agent.announce import Announcer
from agent.instances.keeper import Keeper
from agent.logs import Log
from agent.memory.agent import AgentMemory
from agent.phases import Phases, Wish

EMPTY_LOOK_S = 0.2


class Leaving:
    """``bail_out_s``: the longest time of an evacuation. ``end`` is called when the host is empty or that time is over."""

    def __init__(
        self,
        phases: Phases,
        memory: AgentMemory,
        keeper: Keeper,
        announcer: Announcer,
        stagings: Sized,
        *,
        bail_out_s: float,
        end: Callable[[], None],
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._phases = phases
        self._memory = memory
        self._keeper = keeper
        self._announcer = announcer
        self._stagings = stagings
        self._bail_out_s = bail_out_s
        self._end = end
        self._log = log

    def leave_pool(self) -> None:
        """Stop advertising, and publish that the host has left the pool. Idempotent."""
        if self._phases.take(Wish.LEAVE_POOL):
            self._memory.enter(self._phases.now)
            self._announcer.publish_shutdown()

    def begin_evacuation(self) -> bool:
        """True: the evacuation has begun, and the caller must run `end_when_empty`. False: it was begun before, or the agent
        is ending."""
        if not self._phases.take(Wish.EVACUATE):
            return False
        self._log.info("evacuation_begun")
        self._memory.enter(self._phases.now)
        self._keeper.evacuate()
        self._announcer.publish_shutdown()
        self._announcer.hurry()
        return True

    async def end_when_empty(self) -> None:
        """Call ``end`` once the controllers have stopped every instance and no staging is left, or the time is over
        (docs/protocol.md, "Leaving the pool")."""
        begun_s = max(0.0, self._clock() - self._memory.head.since_s)  # a former agent may have begun it
        bail_out = time.monotonic() + max(0.0, self._bail_out_s - begun_s)
        while (self._keeper.busy() or len(self._stagings)) and time.monotonic() < bail_out:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EMPTY_LOOK_S):
                    await self._phases.ending.wait()
            if self._phases.ending.is_set():
                return
        self._end()
