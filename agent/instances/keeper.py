"""Applies commands to the registry, at once and in wire order, and carries out what the state table says.

Long work belongs to each instance's own task (life.py); nothing here waits.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.announce import Voice
from agent.bus import messages as m
from agent.bus.connection import Bus
from agent.config import Settings
from agent.instances.crashes import kept_bytes, to_keep
from agent.instances.instance import (
    HOLDS,
    ROUTED,
    STOPPABLE,
    UPDATABLE,
    Effect,
    Event,
    Exit,
    Instance,
    Refused,
    State,
)
from agent.instances.registry import Registry
from agent.logs import Log
from agent.resources import Capacity, Claim, Short, claim_of, free_disk_mb, make_capacity


def new_id() -> str:
    """32 hex digits, as the original's instance ids."""
    return secrets.token_hex(16)


class Keeper:
    """``begin`` starts the life task of an instance; ``staging_claims`` is what stagings hold; ``save`` marks an instance as
    changed, before anything is published that follows from the change."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        log: Log,
        host_memory_mb: int,
        staging_claims: Callable[[], tuple[Claim, ...]],
        begin: Callable[[Instance], None],
        save: Callable[[Instance], None],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._log = log
        self._host_memory_mb = host_memory_mb
        self._staging_claims = staging_claims
        self._begin = begin
        self._save = save
        self._rooms: dict[Instance, asyncio.Event] = {}
        self._capacity: Capacity | None = None
        self.bus: Bus
        self.voice: Voice
        self.is_writable: Callable[[], bool] = lambda: True
        self.evacuating = False

    # -- what the host has -------------------------------------------------------------------------------------

    def capacity(self) -> Capacity:
        """Taken once: the disk that instances use later is what they were promised."""
        if self._capacity is None:
            self._capacity = make_capacity(
                self._settings.resources, self._host_memory_mb, free_disk_mb(self._settings.base_dir)
            )
        return self._capacity

    def left(self) -> Capacity:
        return self.capacity().left((self._registry.held, *self._staging_claims()))

    def is_low(self) -> bool:
        """The host's disk is at its low-water mark: nothing new is taken, what runs writes on."""
        return free_disk_mb(self._settings.base_dir) < self._settings.resources.low_water_mb

    def takes_nothing(self) -> bool:
        """Nothing that is new: its disk is low, or cannot be written."""
        return not self.is_writable() or self.is_low()

    def lacks(self, claim: Claim) -> Short | None:
        return Short.DISK if self.takes_nothing() else self.left().lacks(claim)

    def room_of(self, instance: Instance) -> asyncio.Event:
        """Set: there is room."""
        room = self._rooms.get(instance)
        if room is None:
            room = asyncio.Event()
            room.set()
        return room

    def _left_without(self, instances: Iterable[Instance]) -> Capacity:
        """What there would be if these held nothing."""
        left = self.left()
        given_back = tuple(map(claim_of, instances))
        return Capacity(
            left.memory_mb + sum(one.memory_mb for one in given_back),
            left.disk_mb + sum(one.disk_mb for one in given_back),
        )

    def _give_room(self) -> None:
        """Instances of an app that wait for their predecessors, in the order in which they came."""
        waiting = tuple(self._rooms)
        left = self._left_without(waiting)
        for instance in waiting:
            claim = Claim(instance.memory_mb, instance.disk_mb)
            if left.lacks(claim) is None:
                self._rooms.pop(instance).set()
                left = left.left((claim,))

    # -- commands ----------------------------------------------------------------------------------------------

    def start(self, message: m.StartMessage) -> None:
        if self.evacuating:
            self._log.info("start_ignored_evacuating", app=message.app, index=message.index)
            return
        if message.instance_id and self._registry.find(message.instance_id) is not None:
            # the older one would run on with nobody to stop it
            self._log.warning("start_ignored_id_in_use", app=message.app, instance=message.instance_id)
            return
        instance = Instance(
            id=message.instance_id or new_id(),
            private_id=message.private_instance_id or secrets.token_hex(32),
            message=message,
            version=message.version,
            uris=tuple(message.uris or ()),
            record=new_id(),
            state_since_s=time.time(),
        )
        claim = Claim(instance.memory_mb, instance.disk_mb)
        short = self.lacks(claim)
        room = asyncio.Event()
        if short is None:
            room.set()
        elif not self._fits_after_its_own(instance, claim):
            self._refuse(instance, short)
            return
        self._registry.add(instance)
        self._save(instance)
        if not room.is_set():
            self._log.info("start_waits_for_predecessor", app=instance.app, index=instance.index)
            self._rooms[instance] = room
        self._begin(instance)

    def _fits_after_its_own(self, instance: Instance, claim: Claim) -> bool:
        """Would it fit once what is stopping of its own app is gone? Then it waits instead of being refused."""
        going = [one for one in self._registry.of_app(instance.app) if one.state is State.STOPPING]
        if not going or self.takes_nothing():
            return False
        return self._left_without(going).lacks(claim) is None

    def _refuse(self, instance: Instance, short: Short) -> None:
        instance.exit = Exit(-1, f"Not enough {short.value} resource available.")
        instance.crashed_at_s = int(time.time())
        self._registry.add(instance)
        self._log.warning(
            "start_refused",
            app=instance.app,
            index=instance.index,
            short=short.value,
            low_water=self.is_low(),
            left=self.left(),
        )
        self.happen(instance, Event.REFUSED)

    def stop(self, message: m.StopMessage) -> None:
        for instance in self._registry.select(message):
            if instance.state in STOPPABLE:
                self.stop_one(instance)

    def stop_one(self, instance: Instance) -> None:
        self._log.info("instance_stopping", app=instance.app, instance=instance.id, index=instance.index)
        self.happen(instance, Event.STOP)
        instance.stop_requested.set()
        self._rooms.pop(instance, None)

    def update(self, message: m.UpdateMessage) -> None:
        """Routes in place; a new version gives a new id (dea-bus.md 1.5). A start that is under way changes too: what it
        registers once it is healthy are the routes of the newest message."""
        touched = [one for one in self._registry.of_app(message.app) if one.state in UPDATABLE]
        if not touched:
            return
        all_changed = True
        for instance in touched:
            self._save(instance)
            changed = self._update_routes(instance, message) if message.uris is not None else False
            if message.version is not None and message.version != instance.version:
                instance.version = message.version
                self._registry.rename(instance, new_id())
                changed = True
            all_changed &= changed
        if all_changed:
            self.bus.say(self.voice.heartbeat())

    def _update_routes(self, instance: Instance, message: m.UpdateMessage) -> bool:
        wanted = tuple(message.uris or ())
        new = [uri for uri in wanted if uri not in instance.uris]
        old = [uri for uri in instance.uris if uri not in wanted]
        instance.uris = wanted
        if not (instance.healthy and instance.state in ROUTED):
            return bool(new or old)  # nothing of it is registered yet
        if new and (registered := self.voice.register(instance, new)) is not None:
            instance.routed = True
            self.bus.say(registered)
        if old:
            self._unregister(instance, tuple(old))
        return bool(new or old)

    def find(self, message: m.FindMessage, reply_to: str) -> None:
        for instance in self._registry.select(message):
            self.bus.answer(reply_to, self.voice.found(instance, message))

    # -- what the table says -----------------------------------------------------------------------------------

    def happen(self, instance: Instance, event: Event, *, at_s: float | None = None) -> None:
        """``at_s``: when it was, by the host's clock; None: now."""
        before = instance.state
        try:
            effects = instance.move(event, time.time() if at_s is None else at_s)
        except Refused as e:
            self._log.error(
                "move_refused", instance=instance.id, state=before.value, move=event.value, error=str(e)
            )
            return
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
                self.bus.say(self.voice.heartbeat())
            case Effect.REGISTER:
                if (registered := self.voice.register(instance, instance.uris)) is not None:
                    instance.routed = bool(instance.uris)
                    self.bus.say(registered)
            case Effect.UNREGISTER:
                self._withdraw(instance)
            case Effect.ANNOUNCE_EXIT:
                self.announce_exit(instance)
            case Effect.SAVE:
                self._save(instance)
            case Effect.FORGET:
                self._registry.remove(instance)
                self._rooms.pop(instance, None)
                self._give_room()

    def _withdraw(self, instance: Instance) -> None:
        """Takes its routes back, where it ever had one."""
        unregistered = self.voice.unregister(instance, instance.uris)
        if instance.routed and unregistered is not None:
            instance.routed = False
            instance.withdrawn = asyncio.Event()
            self.bus.tell(unregistered, passed=instance.withdrawn.set)

    def announce_exit(self, instance: Instance) -> None:
        """Pending until the outbox has it: an agent that is killed before leaves it to the next one, with the same bytes."""

        def kept() -> None:
            instance.exit_pending = False
            self._save(instance)
            self._drop_older_crashes(instance.app)  # this one may have been waiting to go

        instance.exit_pending = True
        self.bus.tell(self.voice.exited(instance), on_kept=kept)

    # -- after a restart ---------------------------------------------------------------------------------------

    def resume_waiting(self, instance: Instance) -> None:
        """A start that a former agent had accepted: its room is given, it need not wait for it."""
        self._save(instance)

    def announce_what_is_pending(self, instance: Instance) -> None:
        """The exit of a crash that a former agent remembered and did not come to publish: the same bytes."""
        if not instance.exit_pending:
            return
        if self.bus.is_kept(self.voice.exited(instance)):
            instance.exit_pending = False
            return
        self._withdraw(instance)
        self.announce_exit(instance)

    def unregister_what_left(self, instance: Instance) -> None:
        """Routes that an update took away, and a former agent did not come to publish it."""
        left = tuple(uri for uri in instance.leaving if uri not in instance.uris)
        instance.leaving = ()
        if left:
            self._unregister(instance, left)

    def _unregister(self, instance: Instance, uris: tuple[str, ...]) -> None:
        """Pending until the outbox has it, as an exit."""
        unregistered = self.voice.unregister(instance, uris)
        if unregistered is None:
            return

        def kept() -> None:
            instance.leaving = tuple(uri for uri in instance.leaving if uri not in uris)
            self._save(instance)

        instance.leaving = (*instance.leaving, *uris)
        self.bus.tell(unregistered, on_kept=kept)

    # -- crashes -----------------------------------------------------------------------------------------------

    def _drop_older_crashes(self, app: str) -> None:
        """Not one whose exit is still to be published: with its record a killed agent would lose that."""
        crashed = [
            one for one in self._registry.of_app(app) if one.state is State.CRASHED and not one.exit_pending
        ]
        for instance in set(crashed) - to_keep(crashed):
            self.happen(instance, Event.REAP)

    def reap_crashes(self, now_s: float) -> None:
        """A crash is kept for its time only."""
        for instance in self._registry.in_states(frozenset({State.CRASHED})):
            if now_s - instance.crashed_at_s > self._settings.crash_lifetime_secs:
                self.happen(instance, Event.REAP)

    def measure_crashes(self, crashes_dir: Path) -> None:
        """After a restart: what is kept of the former agent's crashes."""
        for instance in self._registry.in_states(frozenset({State.CRASHED})):
            instance.kept_bytes = kept_bytes(crashes_dir / instance.id)
            self._registry.settle(instance)

    def evacuate(self) -> None:
        self.evacuating = True
        for instance in self._registry:
            if instance.state in (State.BORN, State.STARTING, State.RUNNING):
                self.happen(instance, Event.EVACUATE)

    def busy(self) -> tuple[Instance, ...]:
        return self._registry.in_states(HOLDS)
