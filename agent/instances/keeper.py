"""Applies commands to the registry, at once and in wire order, and carries out the effects of the state table.

Long work belongs to each instance's own task (life.py); nothing here waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from agent.admission import Admission
from agent.announce import OwnMessages
from agent.bus import messages as m
from agent.bus.connection import Bus
from agent.config import Settings
from agent.instances.crashes import kept_bytes, to_keep
from agent.instances.instance import (
    HOLDS,
    ROUTED,
    STOPPABLE,
    UPDATABLE,
    Course,
    Effect,
    Exit,
    Instance,
    InstanceEvent,
    MoveRefused,
    State,
)
from agent.instances.registry import Registry
from agent.logs import Log
from agent.phases import Phases
from agent.resources import Claim, Short

#: Of an id: 32 hex digits, as the original's instance ids.
ID_BYTES = 16
PRIVATE_ID_BYTES = 32


class Keeper:
    """``save`` marks an instance as changed. It is called before anything is published that depends on the change."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        admission: Admission,
        phases: Phases,
        bus: Bus,
        own_messages: OwnMessages,
        *,
        log: Log,
        save: Callable[[Instance], None],
        clock: Callable[[], float],
        new_id: Callable[[int], str],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._admission = admission
        self._phases = phases
        self._bus = bus
        self._own_messages = own_messages
        self._log = log
        self._save = save
        self._clock = clock
        self._new_id = new_id

    # -- commands ----------------------------------------------------------------------------------------------

    def start(self, message: m.StartMessage) -> Instance | None:
        """Adds an instance whose life the caller must begin; None: the start was ignored or refused."""
        if not self._phases.permits.starts:
            self._log.info("start_ignored_evacuating", app=message.app, index=message.index)
            return None
        if message.instance_id and self._registry.find(message.instance_id) is not None:
            # the older one would run on with nobody to stop it
            self._log.warning("start_ignored_id_in_use", app=message.app, instance=message.instance_id)
            return None
        instance = Instance(
            id=message.instance_id or self._new_id(ID_BYTES),
            private_id=message.private_instance_id or self._new_id(PRIVATE_ID_BYTES),
            message=message,
            version=message.version,
            uris=tuple(message.uris or ()),
            record=self._new_id(ID_BYTES),
            state_since_s=self._clock(),
        )
        short = self._admission.lacks(Claim(instance.memory_mb, instance.disk_mb))
        if short is not None and not self._admission.fits_later(instance):
            self._refuse(instance, short)
            return None
        self._registry.add(instance)
        self._save(instance)
        if short is not None:
            self._log.info("start_waits_for_predecessor", app=instance.app, index=instance.index)
            self._admission.wait(instance)
        return instance

    def _refuse(self, instance: Instance, short: Short) -> None:
        instance.exit = Exit(-1, f"Not enough {short.value} resource available.")
        instance.crashed_at_s = int(self._clock())
        self._registry.add(instance)
        self._log.warning(
            "start_refused",
            app=instance.app,
            index=instance.index,
            short=short.value,
            low_water=self._admission.is_low(),
            left=self._admission.left(),
        )
        self.happen(instance, InstanceEvent.REFUSED)

    def stop(self, message: m.StopMessage) -> None:
        for instance in self._registry.select(message):
            if instance.state in STOPPABLE:
                self.stop_one(instance)

    def stop_one(self, instance: Instance) -> None:
        self._log.info("instance_stopping", app=instance.app, instance=instance.id, index=instance.index)
        self.happen(instance, InstanceEvent.STOP)
        instance.stop_requested.set()
        self._admission.stop_waiting(instance)

    def update(self, message: m.UpdateMessage) -> None:
        """Changes routes in place; a new version gives a new id (docs/protocol.md, "Update message"). It also applies to a start
        that is under way: once healthy, the instance registers the routes of the newest message."""
        touched = [one for one in self._registry.of_app(message.app) if one.state in UPDATABLE]
        if not touched:
            return
        all_changed = True
        for instance in touched:
            self._save(instance)
            changed = self._update_routes(instance, message) if message.uris is not None else False
            if message.version is not None and message.version != instance.version:
                instance.version = message.version
                self._registry.rename(instance, self._new_id(ID_BYTES))
                changed = True
            all_changed &= changed
        if all_changed:
            self._bus.publish(self._own_messages.heartbeat())

    def _update_routes(self, instance: Instance, message: m.UpdateMessage) -> bool:
        wanted = tuple(message.uris or ())
        new = [uri for uri in wanted if uri not in instance.uris]
        old = [uri for uri in instance.uris if uri not in wanted]
        instance.uris = wanted
        if not (instance.is_healthy and instance.state in ROUTED):
            return bool(new or old)  # nothing of it is registered yet
        if new and (registered := self._own_messages.register(instance, new)) is not None:
            instance.routed = True
            self._bus.publish(registered)
        if old:
            self._unregister(instance, tuple(old))
        return bool(new or old)

    def find(self, message: m.FindMessage, reply_to: str) -> None:
        for instance in self._registry.select(message):
            self._bus.answer(reply_to, self._own_messages.found(instance, message))

    # -- effects of the state table -----------------------------------------------------------------------------------

    def happen(self, instance: Instance, event: InstanceEvent, *, at_s: float | None = None) -> None:
        """Applies an event to an instance. ``at_s``: when it happened, by the host's clock; None: now."""
        before = instance.state
        try:
            effects = instance.move(event, self._clock() if at_s is None else at_s)
        except MoveRefused as e:
            self._log.error(
                "move_refused", instance=instance.id, state=before.value, move=event.value, error=str(e)
            )
            return
        self._moved(instance, before, effects)

    def take_up(self, instance: Instance, course: Course, *, evacuating: bool, at_s: float) -> None:
        """After a restart: enters the state of the table's recovery rows. ``at_s``: since when the instance is in that state."""
        if course is Course.STOP:
            self._log.info("instance_stopping", app=instance.app, instance=instance.id, index=instance.index)
        before = instance.state
        effects = instance.take_up(course, evacuating=evacuating, since_s=at_s)
        self._moved(instance, before, effects)
        if course is Course.STOP:
            instance.stop_requested.set()
        elif course is Course.CRASHED:
            self._announce_what_is_pending(instance)
        self._unregister_what_left(instance)

    def _moved(self, instance: Instance, before: State, effects: tuple[Effect, ...]) -> None:
        if instance.state is not before:
            self._log.debug(
                "instance_state", instance=instance.id, old=before.value, new=instance.state.value
            )
        self._registry.settle(instance)
        for effect in effects:
            self._carry_out(effect, instance)
        if instance.state is State.CRASHED and instance.state is not before:
            self._drop_older_crashes(instance.app)

    def _carry_out(self, effect: Effect, instance: Instance) -> None:
        match effect:
            case Effect.HEARTBEAT:
                self._bus.publish(self._own_messages.heartbeat())
            case Effect.REGISTER:
                if (registered := self._own_messages.register(instance, instance.uris)) is not None:
                    instance.routed = bool(instance.uris)
                    self._bus.publish(registered)
            case Effect.UNREGISTER:
                self._withdraw(instance)
            case Effect.ANNOUNCE_EXIT:
                self.announce_exit(instance)
            case Effect.SAVE:
                self._save(instance)
            case Effect.FORGET:
                self._registry.remove(instance)
                self._admission.stop_waiting(instance)
                self._admission.admit_waiting()

    def _withdraw(self, instance: Instance) -> None:
        """Unregisters its routes, if routers may have any."""
        unregistered = self._own_messages.unregister(instance, instance.uris)
        if instance.routed and unregistered is not None:
            instance.routed = False
            instance.withdrawn = asyncio.Event()
            self._bus.publish_event(unregistered, passed=instance.withdrawn.set)

    def announce_exit(self, instance: Instance) -> None:
        """Publishes its exit. The exit is pending until the outbox has it, so that the next agent publishes it with the same bytes
        if this one is killed."""

        def kept() -> None:
            instance.exit_pending = False
            self._save(instance)
            self._drop_older_crashes(instance.app)  # this one may have been waiting to go

        instance.exit_pending = True
        self._bus.publish_event(self._own_messages.exited(instance), on_kept=kept)

    # -- after a restart ---------------------------------------------------------------------------------------

    def _announce_what_is_pending(self, instance: Instance) -> None:
        """Publishes the exit of a crash that a former agent recorded but did not publish, with the same bytes."""
        if not instance.exit_pending:
            return
        if self._bus.is_kept(self._own_messages.exited(instance)):
            instance.exit_pending = False
            return
        self._withdraw(instance)
        self.announce_exit(instance)

    def _unregister_what_left(self, instance: Instance) -> None:
        """Publishes the unregister of routes that an update removed under a former agent."""
        left = tuple(uri for uri in instance.leaving if uri not in instance.uris)
        instance.leaving = ()
        if left:
            self._unregister(instance, left)

    def _unregister(self, instance: Instance, uris: tuple[str, ...]) -> None:
        """Publishes an unregister, which is pending until the outbox has it, as an exit is."""
        unregistered = self._own_messages.unregister(instance, uris)
        if unregistered is None:
            return

        def kept() -> None:
            instance.leaving = tuple(uri for uri in instance.leaving if uri not in uris)
            self._save(instance)

        instance.leaving = (*instance.leaving, *uris)
        self._bus.publish_event(unregistered, on_kept=kept)

    # -- crashes -----------------------------------------------------------------------------------------------

    def _drop_older_crashes(self, app: str) -> None:
        """Removes older crashes of the same index, but none whose exit is still to be published: its record is needed for that."""
        crashed = [
            one for one in self._registry.of_app(app) if one.state is State.CRASHED and not one.exit_pending
        ]
        for instance in set(crashed) - to_keep(crashed):
            self.happen(instance, InstanceEvent.REAP)

    def reap_crashes(self, now_s: float) -> None:
        """Removes crashes whose time is over."""
        for instance in self._registry.in_states(frozenset({State.CRASHED})):
            if now_s - instance.crashed_at_s > self._settings.crash_lifetime_secs:
                self.happen(instance, InstanceEvent.REAP)

    def measure_crashes(self, crashes_dir: Path) -> None:
        """After a restart: measures the records of the former agent's crashes."""
        for instance in self._registry.in_states(frozenset({State.CRASHED})):
            instance.kept_bytes = kept_bytes(crashes_dir / instance.id)
            self._registry.settle(instance)

    def evacuate(self) -> None:
        """Reports every instance to controllers, so that they start replacements elsewhere."""
        for instance in self._registry:
            if instance.state in (State.BORN, State.STARTING, State.RUNNING):
                self.happen(instance, InstanceEvent.EVACUATE)

    def busy(self) -> tuple[Instance, ...]:
        return self._registry.in_states(HOLDS)
