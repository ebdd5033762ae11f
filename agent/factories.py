"""What a worker gets from outside: the clock, new ids, and the parts that reach the host or the network.

`on_host` is what `garrison run` uses. A test or a simulation hands in others: a depot in memory needs neither root nor a
kernel feature (tests/depot_in_memory.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.config import Settings
from agent.depot import AgentDepot, OpenDepot
from agent.droplets.transfer import Transfers
from agent.droplets.unpacker import Unpacker
from agent.host import depot_settings, transfers_for
from agent.logs import Log
from container import Depot
from wsh.units import MIB


@dataclass(frozen=True, slots=True)
class Factories:
    """``clock``: seconds since 1970; what is published and remembered goes by it, timers go by the event loop.
    ``new_id``: as many random bytes as asked for, as hex digits."""

    open_depot: OpenDepot
    transfers: Callable[[Settings], Transfers]
    unpacker: Callable[[Settings], Unpacker]
    clock: Callable[[], float] = time.time
    new_id: Callable[[int], str] = secrets.token_hex


async def _open_depot(settings: Settings, log: Log, port_rests: Callable[[int], bool]) -> AgentDepot:
    return await Depot.open(depot_settings(settings), log=log, port_rests=port_rests)


def _unpacker(settings: Settings) -> Unpacker:
    return Unpacker(low_water_bytes=settings.resources.low_water_mb * MIB)


def on_host() -> Factories:
    return Factories(_open_depot, transfers_for, _unpacker)
