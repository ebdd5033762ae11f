"""The phases of the agent as a whole, as a table: instances have states, the agent has these.

Everything that depends on the phase asks `Phases.now` and keeps no flag of its own. A wish that is not in the table
for the current phase changes nothing: a second TERM, an evacuation of an agent that ends.

| phase | adverts | new starts | remembered, so that the next agent goes on with it |
| --- | --- | --- | --- |
| serving | yes | yes | yes |
| out of pool (USR1) | no | yes: a controller may know better | yes |
| evacuating (USR2) | no | no | yes |
| stopping (TERM) | no | no | no: once it has stopped everything the next agent serves |
| detaching | no | no | no: the next agent takes over what this one was |
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class AgentPhase(StrEnum):
    """The values of the remembered ones are on disk."""

    SERVING = "serving"
    OUT_OF_POOL = "out of pool"
    EVACUATING = "evacuating"
    STOPPING = "stopping"
    DETACHING = "detaching"


class Wish(StrEnum):
    """What an operator or a signal asks of the agent."""

    LEAVE_POOL = "leave pool"
    EVACUATE = "evacuate"
    STOP = "stop"
    DETACH = "detach"


@dataclass(frozen=True, slots=True)
class Permits:
    """``adverts``: controllers may place here; ``starts``: new instances are accepted; ``remembered``: see the module."""

    adverts: bool
    starts: bool
    remembered: bool


_P, _W = AgentPhase, Wish
PERMITS: Final[Mapping[AgentPhase, Permits]] = {
    _P.SERVING: Permits(adverts=True, starts=True, remembered=True),
    _P.OUT_OF_POOL: Permits(adverts=False, starts=True, remembered=True),
    _P.EVACUATING: Permits(adverts=False, starts=False, remembered=True),
    _P.STOPPING: Permits(adverts=False, starts=False, remembered=False),
    _P.DETACHING: Permits(adverts=False, starts=False, remembered=False),
}
PHASES: Final[Mapping[tuple[AgentPhase, Wish], AgentPhase]] = {
    (_P.SERVING, _W.LEAVE_POOL): _P.OUT_OF_POOL,
    (_P.SERVING, _W.EVACUATE): _P.EVACUATING,
    (_P.SERVING, _W.STOP): _P.STOPPING,
    (_P.SERVING, _W.DETACH): _P.DETACHING,
    (_P.OUT_OF_POOL, _W.EVACUATE): _P.EVACUATING,
    (_P.OUT_OF_POOL, _W.STOP): _P.STOPPING,
    (_P.OUT_OF_POOL, _W.DETACH): _P.DETACHING,
    (_P.EVACUATING, _W.STOP): _P.STOPPING,
    (_P.EVACUATING, _W.DETACH): _P.DETACHING,
}
#: What the next agent wishes for when it finds this phase remembered.
RESUMED: Final[Mapping[AgentPhase, Wish]] = {
    _P.OUT_OF_POOL: _W.LEAVE_POOL,
    _P.EVACUATING: _W.EVACUATE,
}


class Phases:
    """``ending`` is set once the agent stops or detaches."""

    def __init__(self) -> None:
        self.now = AgentPhase.SERVING
        self.ending = asyncio.Event()

    @property
    def permits(self) -> Permits:
        return PERMITS[self.now]

    def take(self, wish: Wish) -> bool:
        """Enter the phase that the table has for ``wish``. False: there is none, and nothing changes."""
        after = PHASES.get((self.now, wish))
        if after is None:
            return False
        self.now = after
        if not self.permits.remembered:
            self.ending.set()
        return True
