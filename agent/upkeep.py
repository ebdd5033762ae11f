"""Periodic work: measures each running app, removes crash records after their time, and removes layers when the disk is low."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from agent.admission import Admission
from agent.config import Settings
from agent.depot import AgentContainer, AgentDepot
from agent.droplets.layers import Layers
from agent.instances import crashes
from agent.instances.instance import ROUTED, Instance
from agent.instances.keeper import Keeper
from agent.instances.parts import container_of
from agent.instances.registry import Registry
from agent.instances.stats import sample
from agent.logs import Log
from agent.supervisor import Supervisor

REAPER_PERIOD_S = 10.0


class Upkeep:
    def __init__(
        self,
        settings: Settings,
        supervisor: Supervisor,
        registry: Registry,
        keeper: Keeper,
        admission: Admission,
        depot: AgentDepot,
        layers: Layers,
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._supervisor = supervisor
        self._registry = registry
        self._keeper = keeper
        self._admission = admission
        self._depot = depot
        self._layers = layers
        self._log = log

    def begin(self) -> None:
        self._supervisor.every("stats", self._sample_all, lambda: self._settings.intervals.stats)
        self._supervisor.every("reaper", self._reap, lambda: REAPER_PERIOD_S)

    @property
    def crashes_dir(self) -> Path:
        return self._settings.base_dir / "crashes"

    async def _sample_all(self) -> None:
        for instance in self._registry.in_states(ROUTED):
            if (container := container_of(instance, self._depot)) is not None:
                await self.sample(instance, container)

    async def sample(self, instance: Instance, container: AgentContainer) -> None:
        """Measure one instance. An error is only logged: it must not fail the take-up of a former agent's apps, which calls
        this too."""
        with self._supervisor.guard("stats", app=instance.app, instance=instance.id):
            if not instance.layer_bytes:
                layer = self._layers.known(instance.message.sha1 or "")
                instance.layer_bytes = layer.bytes if layer is not None else 0
            await sample(instance, container, self._log)
        await asyncio.sleep(0)  # the reads above block; between two instances the bus gets a turn

    async def _reap(self) -> None:
        with self._supervisor.guard("reaper"):
            self._keeper.reap_crashes(self._clock())
            await crashes.sweep(self.crashes_dir, lambda name: self._registry.find(name) is not None)
        if self._admission.is_low():
            await self._layers.sweep({one.message.sha1 for one in self._registry if one.message.sha1})
