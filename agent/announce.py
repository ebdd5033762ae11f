"""The agent's voice: what it says by itself, and what it answers. Builds messages; the bus carries them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from msgspec import UNSET

from agent.bus import messages as m
from agent.config import Settings
from agent.instances.instance import IN_HEARTBEAT, ROUTED, Instance, State
from agent.instances.registry import Registry
from agent.resources import MIB, Capacity

AGENT_VERSION = "0.0.1"  # what the original always said in dea.shutdown
REGISTER_FLOOR_S, REGISTER_CEILING_S = 1.0, 20.0


class Voice:
    """``left``: what the host has to give now."""

    def __init__(self, settings: Settings, agent_id: str, local_ip: str, registry: Registry) -> None:
        self._settings = settings
        self._id = agent_id
        self._ip = local_ip
        self._registry = registry
        self._tags = {"component": f"dea-{settings.index}"}
        self._stacks = tuple(stack.name for stack in settings.stacks)
        self.register_interval_s = settings.intervals.router_register_in_seconds

    def heard_router(self, start: m.RouterStart) -> None:
        """The smaller of the configured and the last heard interval, within bounds (peers-on-the-bus.md 4)."""
        heard = start.interval_s
        if heard is not None:
            wanted = min(heard, self._settings.intervals.router_register_in_seconds, REGISTER_CEILING_S)
            self.register_interval_s = max(wanted, REGISTER_FLOOR_S)

    def adverts(self, left: Capacity) -> tuple[m.Advertise, m.StagingAdvertise]:
        memory, disk = int(left.memory_mb), int(left.disk_mb)
        zone = {"zone": self._settings.placement_properties.zone}
        return (
            m.Advertise(self._id, self._stacks, memory, disk, self._registry.counts(), zone),
            m.StagingAdvertise(self._id, self._stacks, memory, disk),
        )

    def heartbeat(self) -> m.Heartbeat:
        return m.Heartbeat(tuple(_entry(one) for one in self._registry.in_states(IN_HEARTBEAT)), self._id)

    def routes(self) -> tuple[m.RouterRegister, ...]:
        """Of everything that has routes now."""
        return tuple(
            one
            for instance in self._registry.in_states(ROUTED)
            if instance.uris and (one := self.register(instance, instance.uris)) is not None
        )

    def register(self, instance: Instance, uris: Iterable[str]) -> m.RouterRegister | None:
        fields = self._route(instance, uris)
        return m.RouterRegister(*fields) if fields is not None and instance.healthy else None

    def unregister(self, instance: Instance, uris: Iterable[str]) -> m.RouterUnregister | None:
        """None: it never had a port, so there is nothing to take back (peers-on-the-bus.md 4)."""
        fields = self._route(instance, uris)
        return m.RouterUnregister(*fields) if fields is not None else None

    def _route(
        self, instance: Instance, uris: Iterable[str]
    ) -> tuple[str, str, tuple[str, ...], str, int, dict[str, str], str] | None:
        port = instance.port.host_port if instance.port is not None else None
        if port is None:
            return None
        return self._id, instance.app, tuple(uris), self._ip, port, self._tags, instance.private_id

    def exited(self, instance: Instance) -> m.DropletExited:
        return m.DropletExited(
            instance.message.cc_partition,
            instance.app,
            instance.version,
            instance.id,
            instance.index,
            "CRASHED",
            instance.exit.status,
            instance.exit.description,
            instance.crashed_at_s,
        )

    def shutdown(self) -> m.DeaShutdown:
        return m.DeaShutdown(self._id, self._ip, AGENT_VERSION, self._registry.counts())

    def found(self, instance: Instance, question: m.FindMessage) -> m.FindReply:
        stats = question.include_stats and instance.state is State.RUNNING
        return m.FindReply(
            self._id,
            instance.app,
            instance.version,
            instance.id,
            instance.index,
            instance.state.value,
            instance.state_since_s,
            f"/{instance.id}",
            self._stats(instance) if stats else UNSET,
        )

    def _stats(self, instance: Instance) -> m.Stats:
        limits = instance.message.limits
        now = time.time()
        return m.Stats(
            instance.message.name,
            instance.uris,
            self._ip,
            instance.port.host_port if instance.port is not None else None,
            int(now - instance.started_at_s),
            limits.mem * MIB,
            limits.disk * MIB,
            limits.fds,
            m.Usage(
                time.strftime("%Y-%m-%d %H:%M:%S +0000", time.gmtime(now)),
                instance.cpu_fraction,
                instance.memory_bytes,
                instance.disk_bytes,
            ),
        )


def _entry(instance: Instance) -> m.HeartbeatEntry:
    return m.HeartbeatEntry(
        instance.message.cc_partition,
        instance.app,
        instance.version,
        instance.id,
        instance.index,
        instance.state.value,
        instance.state_since_s,
    )
