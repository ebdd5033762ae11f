"""The two ways in which an agent ends.

`shut_down` stops every app and leaves nothing on the host. `let_go` leaves the containers to the next agent. Both first
ignore the bus: a start that came now would be lost, or would outlive the agent that answers for it.
"""

from __future__ import annotations

import asyncio
import time

from agent.announce import Announcer
from agent.bus.connection import Bus
from agent.depot import AgentDepot
from agent.instances.instance import State
from agent.instances.keeper import Keeper
from agent.instances.registry import Registry
from agent.lives import Lives, wait_for_tasks
from agent.logs import Log
from agent.staging.keeper import StagingKeeper
from agent.supervisor import Supervisor

FAREWELL_S = 3.0
STAGINGS_END_S = 2.0
#: The share of the deadline in which apps may end by themselves. The rest is for killing them and for the last messages.
APPS_SHARE = 0.75


class Deadline:
    """The time at which the agent must have ended."""

    def __init__(self) -> None:
        self._at_s = float("inf")

    def begin(self, timeout_s: float) -> None:
        self._at_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds; infinite until `begin`."""
        return max(0.0, self._at_s - time.monotonic())


class Ending:
    def __init__(
        self,
        deadline: Deadline,
        bus: Bus,
        announcer: Announcer,
        keeper: Keeper,
        stagings: StagingKeeper,
        lives: Lives,
        registry: Registry,
        depot: AgentDepot,
        supervisor: Supervisor,
        log: Log,
    ) -> None:
        self._deadline = deadline
        self._bus = bus
        self._announcer = announcer
        self._keeper = keeper
        self._stagings = stagings
        self._lives = lives
        self._registry = registry
        self._depot = depot
        self._supervisor = supervisor
        self._log = log

    async def shut_down(self, deadline_s: float) -> None:
        """Stops all apps and stagings and destroys their containers, within ``deadline_s``."""
        self._deadline.begin(deadline_s)
        self._bus.ignore_commands()
        self._announcer.publish_shutdown()
        self._stagings.stop_all()
        for instance in self._registry:
            if instance.state is not State.CRASHED:
                self._keeper.stop_one(instance)
        await wait_for_tasks(self._lives.of_instances() | self._lives.of_stagings(), deadline_s * APPS_SHARE)
        await self._destroy_rest()
        await self._bus.farewell(min(FAREWELL_S, max(0.5, self._deadline.left_s())))

    async def _destroy_rest(self) -> None:
        """Destroys the containers of what has not ended by itself."""
        handles = self._depot.handles()
        if not handles:
            return
        self._log.warning("containers_killed_at_deadline", handles=handles)
        killing = {self._supervisor.start("destroy", self._depot.destroy(one), handle=one) for one in handles}
        await wait_for_tasks(killing | self._lives.of_instances(), self._deadline.left_s())
        for task in killing:
            task.cancel()

    async def let_go(self) -> None:
        """Ends the tasks of the instances; their containers run on for the next agent. Stagings are stopped."""
        self._bus.ignore_commands()
        self._stagings.stop_all()
        await wait_for_tasks(self._lives.of_stagings(), STAGINGS_END_S)
        lives = self._lives.of_instances()
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        await self._bus.farewell(FAREWELL_S)
