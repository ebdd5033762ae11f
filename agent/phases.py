"""The phases of the agent as a whole, what each permits, and what leads from one to another, as tables.

All code that depends on the phase reads `Phases`; no other flag exists. A wish that has no row for the current phase changes
nothing, for example a second TERM, or an evacuation while the agent is ending. So a phase is never left for an earlier one.

| phase | adverts | new starts | remembered, so that the next agent continues it |
| --- | --- | --- | --- |
| serving | yes | yes | yes |
| out of pool (USR1) | no | yes: a controller may still choose this host | yes |
| evacuating (USR2) | no | no | yes |
| stopping (TERM) | no | no | no: all apps are stopped, and the next agent serves again |
| detaching | no | no | no: the next agent continues the phase before the detaching |
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class AgentPhase(StrEnum):
    """The values are on disk, in the memory, so they must not change."""

    SERVING = "serving"
    OUT_OF_POOL = "out of pool"
    EVACUATING = "evacuating"
    STOPPING = "stopping"
    DETACHING = "detaching"


class Wish(StrEnum):
    """A change of phase that an operator or a signal requests."""

    LEAVE_POOL = "leave pool"
    EVACUATE = "evacuate"
    STOP = "stop"
    DETACH = "detach"


@dataclass(frozen=True, slots=True)
class Permits:
    """``adverts``: the host is advertised. ``starts``: new instances are accepted. ``remembered``: the memory records the phase."""

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
#: The wish with which the next agent continues a phase that the memory records.
RESUMED: Final[Mapping[AgentPhase, Wish]] = {
    _P.OUT_OF_POOL: _W.LEAVE_POOL,
    _P.EVACUATING: _W.EVACUATE,
}


class Phases:
    """The current phase. ``ending`` is set once the agent stops or detaches."""

    def __init__(self) -> None:
        self.now = AgentPhase.SERVING
        self.ending = asyncio.Event()

    @property
    def permits(self) -> Permits:
        return PERMITS[self.now]

    def take(self, wish: Wish) -> bool:
        """Enter the phase that `PHASES` has for ``wish``. False: it has none, and nothing changes."""
        after = PHASES.get((self.now, wish))
        if after is None:
            return False
        self.now = after
        if not self.permits.remembered:
            self.ending.set()
        return True
