"""Publishes the agent's own messages: adverts, heartbeats, routes, the shutdown of the host; and builds replies to a find.

`OwnMessages` only builds messages. `Announcer` publishes the periodic ones, each at its period, or sooner when something
made it due. Periodic messages are not stored: the next one replaces a lost one, so all are published after each connect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from msgspec import UNSET

from agent.admission import Admission
from agent.bus import messages as m
from agent.bus.connection import Bus
from agent.config import Settings
from agent.instances.instance import IN_HEARTBEAT, ROUTED, Instance, State
from agent.instances.registry import Registry
from agent.logs import Log
from agent.phases import Phases
from agent.probe import WriteProbe
from agent.resources import Capacity
from agent.stacks import no_stack
from agent.supervisor import Supervisor
from wsh.units import MIB

AGENT_VERSION = "0.0.1"  # the original DEA always published this in dea.shutdown
REGISTER_FLOOR_S, REGISTER_CEILING_S = 1.0, 20.0
EVACUATION_PERIOD_S = 5.0
BORN_S = 1.0


class OwnMessages:
    """Builds messages from the present content of the registry. Publishes nothing."""

    def __init__(
        self, settings: Settings, agent_id: str, local_ip: str, registry: Registry, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._id = agent_id
        self._ip = local_ip
        self._registry = registry
        self._tags = {"component": f"dea-{settings.index}"}
        self.register_interval_s = settings.intervals.router_register_in_seconds

    def receive_router_start(self, start: m.RouterStart) -> None:
        """Set the interval of routes: the smaller of the configured and the received one, within bounds
        (docs/protocol.md, "Routes")."""
        heard = start.interval_s
        if heard is not None:
            wanted = min(heard, self._settings.intervals.router_register_in_seconds, REGISTER_CEILING_S)
            self.register_interval_s = max(wanted, REGISTER_FLOOR_S)

    def adverts(self, left: Capacity, stacks: tuple[str, ...]) -> tuple[m.Advertise, m.StagingAdvertise]:
        memory, disk = int(left.memory_mb), int(left.disk_mb)
        zone = {"zone": self._settings.placement_properties.zone}
        return (
            m.Advertise(self._id, stacks, memory, disk, self._registry.counts(), zone),
            m.StagingAdvertise(self._id, stacks, memory, disk),
        )

    def heartbeat(self) -> m.Heartbeat:
        """The instances of this host. A start that has waited for admission longer than `BORN_S` is listed as STARTING, since a
        health manager that does not see it would ask for another instance."""
        late_s = self._clock() - BORN_S
        return m.Heartbeat(
            tuple(
                _entry(one)
                for one in self._registry.in_states(IN_HEARTBEAT | {State.BORN})
                if one.state is not State.BORN or one.state_since_s < late_s
            ),
            self._id,
        )

    def routes(self) -> tuple[m.RouterRegister, ...]:
        """A register message with all routes of each healthy instance."""
        return tuple(
            one
            for instance in self._registry.in_states(ROUTED)
            if instance.uris and (one := self.register(instance, instance.uris)) is not None
        )

    def register(self, instance: Instance, uris: Iterable[str]) -> m.RouterRegister | None:
        """None: the instance is not healthy or has no port, so routers must not send it requests."""
        fields = self._route(instance, uris)
        return m.RouterRegister(*fields) if fields is not None and instance.is_healthy else None

    def unregister(self, instance: Instance, uris: Iterable[str]) -> m.RouterUnregister | None:
        """None: the instance never had a port, so it was never registered (docs/protocol.md, "Routes")."""
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
        now = self._clock()
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
        (State.STARTING if instance.state is State.BORN else instance.state).value,
        instance.state_since_s,
    )


class Announcer:
    """Publishes adverts, heartbeats and routes, each at its period, and sooner when its event ``..._due`` is set."""

    def __init__(
        self,
        settings: Settings,
        own_messages: OwnMessages,
        bus: Bus,
        admission: Admission,
        phases: Phases,
        probe: WriteProbe,
        *,
        log: Log,
    ) -> None:
        self._settings = settings
        self._own_messages = own_messages
        self._bus = bus
        self._admission = admission
        self._phases = phases
        self._probe = probe
        self._log = log
        self._published_shutdown = False
        self._absent: dict[str, str] = {}
        """The configured stacks that were missing at the last advert, and why. Kept so that only changes are logged."""
        self._beat_period_s = settings.intervals.heartbeat
        self._advert_due, self._beat_due, self._routes_due = (asyncio.Event() for _ in range(3))

    def begin(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        advert_period_s = self._settings.intervals.advertise
        supervisor.every("advertise", self._look_and_advertise, lambda: advert_period_s, self._advert_due)
        supervisor.every("heartbeat", self._beat, lambda: self._beat_period_s, self._beat_due)
        supervisor.every(
            "routes", self._register, lambda: self._own_messages.register_interval_s, self._routes_due
        )

    def publish_anew(self) -> None:
        """Publish a heartbeat, an advert and all routes. Called after each connect, since the bus stores none of these.

        Each is guarded: an error would otherwise close the connection, and occur again with the next one.
        """
        first = {"heartbeat": self._beat, "advertise": self._advertise, "routes": self._register}
        for name, publish in first.items():
            with self._supervisor.guard(name):
                publish()

    def _stacks_there(self) -> tuple[str, ...]:
        """The stacks to advertise. One whose files are missing is left out, since starts on it would fail."""
        absent = {
            stack.name: why
            for stack in self._settings.stacks
            if (why := no_stack(stack.package_path)) is not None
        }
        for name, why in absent.items():
            if self._absent.get(name) != why:
                self._log.warning("stack_not_advertised", stack=name, error=why)
        for name in self._absent.keys() - absent.keys():
            self._log.info("stack_advertised_again", stack=name)
        self._absent = absent
        return tuple(stack.name for stack in self._settings.stacks if stack.name not in absent)

    def receive_router_start(self, start: m.RouterStart) -> None:
        """A router has started and knows no routes: repeat the recent unregisters, then publish all routes without delay.

        In this order, a route that was unregistered and later registered again ends up registered.
        """
        self._own_messages.receive_router_start(start)
        self._bus.set_prune_threshold(start.prune_s)
        self._bus.repeat_unregisters()
        self._routes_due.set()

    def publish_shutdown(self) -> None:
        """Publish that the host has left the pool, the first time this is called."""
        if not self._published_shutdown:
            self._published_shutdown = True
            self._bus.publish_event(self._own_messages.shutdown())

    def hurry(self) -> None:
        """Publish a heartbeat now and then at least every `EVACUATION_PERIOD_S`, so that replacements of the evacuated instances
        start soon (docs/protocol.md, "Leaving the pool")."""
        self._beat_period_s = min(self._beat_period_s, EVACUATION_PERIOD_S)
        self._beat_due.set()

    async def _look_and_advertise(self) -> None:
        await self._probe.look()
        self._advertise()

    def _advertise(self) -> None:
        if not self._phases.permits.adverts or self._admission.takes_nothing():
            return
        dea, staging = self._own_messages.adverts(self._admission.left(), self._stacks_there())
        self._bus.publish(dea)
        if self._settings.staging.enabled:
            self._bus.publish(staging)

    def _beat(self) -> None:
        self._bus.publish(self._own_messages.heartbeat())

    def _register(self) -> None:
        for route in self._own_messages.routes():
            self._bus.publish(route)
