"""The parts of the agent that the life of an instance uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.config import Settings
from agent.depot import AgentContainer, AgentDepot
from agent.droplets.layers import Layers
from agent.instances.instance import Instance, InstanceEvent
from agent.instances.prober import Prober
from agent.instances.registry import Registry
from agent.logs import Log
from container import UnknownHandle


class Remembers(Protocol):
    """The memory of instances; see `agent.memory.instances.InstanceRecords`."""

    def save(self, instance: Instance) -> None: ...

    def record(self, instance: Instance) -> bytes: ...

    async def wait_written(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LifeParts:
    """``starts``: the slots of starts; at most so many containers are made at once.
    ``clock``: seconds since 1970.
    ``happen``: changes the instance's state by the table.
    ``wait_passed``: until the bus has passed a message on, within seconds.
    ``admitted``: set when the start may go on (`agent/admission.py`).
    ``left_s``: seconds until the agent's own deadline; endless while the agent does not end.
    """

    settings: Settings
    depot: AgentDepot
    layers: Layers
    registry: Registry
    records: Remembers
    prober: Prober
    local_ip: str
    starts: asyncio.Semaphore
    clock: Callable[[], float]
    log: Log
    happen: Callable[[Instance, InstanceEvent], None]
    wait_passed: Callable[[asyncio.Event, float], Awaitable[None]]
    admitted: Callable[[Instance], asyncio.Event]
    left_s: Callable[[], float]

    @property
    def crashes_dir(self) -> Path:
        return self.settings.base_dir / "crashes"


def container_of(instance: Instance, depot: AgentDepot) -> AgentContainer | None:
    """The container of an instance; None: it has none, or the container is gone."""
    try:
        return depot.find(instance.handle) if instance.handle else None
    except UnknownHandle:
        return None
