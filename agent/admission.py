"""Admission: may something new begin on this host, now or later?

One part decides it for starts and stagings, and the adverts publish the same figures. It adds up what the host has
(`Capacity`), what instances hold (`Registry.held`), what stagings hold (`hold`), and looks at the disk: at its
low-water mark, or while it cannot be written, nothing new is taken and what runs goes on.

A start that will fit once the stopping instances of its own app have ended is not refused. It waits, and is admitted
when they are gone, in the order in which the starts came (`wait`, `admit_waiting`): a controller that replaces an app
on a full host would otherwise lose it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from agent.config import Settings
from agent.instances.instance import Instance, State
from agent.instances.registry import Registry
from agent.probe import WriteProbe
from agent.resources import Capacity, Claim, Short, claim_of, free_disk_mb, make_capacity


class Admission:
    """``host_memory_mb``: of the whole host; ``probe`` knows whether the agent's directory can be written."""

    def __init__(
        self, settings: Settings, registry: Registry, probe: WriteProbe, *, host_memory_mb: int
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._probe = probe
        self._host_memory_mb = host_memory_mb
        self._capacity: Capacity | None = None
        self._held: dict[object, Claim] = {}
        self._waiting: dict[Instance, asyncio.Event] = {}

    # What the host has.

    def capacity(self) -> Capacity:
        """Measured once: the disk that instances use later is what they were promised."""
        if self._capacity is None:
            self._capacity = make_capacity(
                self._settings.resources, self._host_memory_mb, free_disk_mb(self._settings.base_dir)
            )
        return self._capacity

    def left(self) -> Capacity:
        """What is not promised to anybody."""
        return self.capacity().left((self._registry.held, *self._held.values()))

    def is_low(self) -> bool:
        """True at the low-water mark of the host's disk."""
        return free_disk_mb(self._settings.base_dir) < self._settings.resources.low_water_mb

    def takes_nothing(self) -> bool:
        """True while nothing new may begin: the disk is low, or cannot be written."""
        return not self._probe.is_writable or self.is_low()

    def lacks(self, claim: Claim) -> Short | None:
        """What is missing for ``claim`` now; None: it fits."""
        return Short.DISK if self.takes_nothing() else self.left().lacks(claim)

    # What is held by others than instances.

    def hold(self, owner: object, claim: Claim) -> None:
        """A staging begins."""
        self._held[owner] = claim

    def release(self, owner: object) -> None:
        """Idempotent."""
        self._held.pop(owner, None)

    # Starts that wait.

    def fits_later(self, instance: Instance) -> bool:
        """True if the start will fit once the app's stopping instances have ended; such a start waits."""
        stopping = [one for one in self._registry.of_app(instance.app) if one.state is State.STOPPING]
        if not stopping or self.takes_nothing():
            return False
        return self._left_without(stopping).lacks(_claim(instance)) is None

    def wait(self, instance: Instance) -> None:
        """`admitted` of this instance is set by `admit_waiting`."""
        self._waiting[instance] = asyncio.Event()

    def admitted(self, instance: Instance) -> asyncio.Event:
        """Set: the start may go on."""
        event = self._waiting.get(instance)
        if event is None:
            event = asyncio.Event()
            event.set()
        return event

    def stop_waiting(self, instance: Instance) -> None:
        """It is being stopped, or is gone. Idempotent."""
        self._waiting.pop(instance, None)

    def admit_waiting(self) -> None:
        """An instance has ended: those that fit now are admitted, in the order in which they came."""
        waiting = tuple(self._waiting)
        left = self._left_without(waiting)
        for instance in waiting:
            claim = _claim(instance)
            if left.lacks(claim) is None:
                self._waiting.pop(instance).set()
                left = left.left((claim,))

    def _left_without(self, instances: Iterable[Instance]) -> Capacity:
        """What would be left if these held nothing."""
        left = self.left()
        for claim in map(claim_of, instances):
            left = left.left((Claim(-claim.memory_mb, -claim.disk_mb),))
        return left


def _claim(instance: Instance) -> Claim:
    return Claim(instance.memory_mb, instance.disk_mb)
