"""The records of instances: one in the memory, and a copy beside each container, from which the record can be made again."""

from __future__ import annotations

from contextlib import suppress

from agent.depot import AgentDepot
from agent.instances.instance import Instance
from agent.instances.registry import Registry
from agent.memory import records
from agent.memory.ahead import Memory
from agent.memory.store import INSTANCES
from container import UnknownHandle, WrongState


class InstanceRecords:
    """``agent_id``: of the agent that the instances belong to; it is in each record."""

    def __init__(self, memory: Memory, registry: Registry, depot: AgentDepot, agent_id: str) -> None:
        self._memory = memory
        self._registry = registry
        self._depot = depot
        self._agent_id = agent_id

    def save(self, instance: Instance) -> None:
        """Marks the record of an instance that has changed. The record of one that has left the registry is removed."""

        def compose() -> bytes | None:
            return self.record(instance) if self._registry.find(instance.id) is instance else None

        self._memory.keep(INSTANCES, instance.record, compose, after=lambda data: self._copy(instance, data))

    def record(self, instance: Instance) -> bytes:
        """The record's bytes as they are now."""
        return records.encode(records.save_instance(instance, self._agent_id))

    def _copy(self, instance: Instance, data: bytes) -> None:
        with suppress(UnknownHandle, WrongState):  # the container is gone, or being destroyed
            self._depot.find(instance.handle or "").keep_record(data)

    async def wait_written(self) -> None:
        """Returns when all marks made so far are on disk, or were tried once."""
        await self._memory.wait_written(self._memory.generation)
