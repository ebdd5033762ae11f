"""Admission decides whether a new instance or staging may begin on this host.

It decides for starts and stagings, and adverts publish its figures, so a host never advertises what it would refuse. What is
left is the host's `Capacity` minus the claims of instances (`Registry.held`) and of stagings (`hold`). While free disk is
below the low-water mark, or base_dir cannot be written, nothing new is admitted; running apps continue.

A start that will fit once the stopping instances of its own app have ended is not refused. It waits, and is admitted when
they have ended, in the order of arrival (`wait`, `admit_waiting`). Otherwise a controller that replaces an app on a full
host would lose it.
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
    """``host_memory_mb``: the whole memory of the host. ``probe``: whether base_dir can be written."""

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
        """What the host has in all. Measured once, since disk that instances use later is covered by their claims."""
        if self._capacity is None:
            self._capacity = make_capacity(
                self._settings.resources, self._host_memory_mb, free_disk_mb(self._settings.base_dir)
            )
        return self._capacity

    def left(self) -> Capacity:
        """The capacity without all claims. Negative where the host is overcommitted."""
        return self.capacity().left((self._registry.held, *self._held.values()))

    def is_low(self) -> bool:
        """True while the free disk is below the low-water mark."""
        return free_disk_mb(self._settings.base_dir) < self._settings.resources.low_water_mb

    def takes_nothing(self) -> bool:
        """True while nothing new may begin: the disk is low, or base_dir cannot be written."""
        return not self._probe.is_writable or self.is_low()

    def lacks(self, claim: Claim) -> Short | None:
        """What is missing for ``claim`` now; None: it fits."""
        return Short.DISK if self.takes_nothing() else self.left().lacks(claim)

    # Claims of stagings; those of instances are in the registry.

    def hold(self, owner: object, claim: Claim) -> None:
        """Count ``claim`` until ``owner`` releases it."""
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
        """Let the start wait until `admit_waiting` sets its `admitted`."""
        self._waiting[instance] = asyncio.Event()

    def admitted(self, instance: Instance) -> asyncio.Event:
        """An event that is set once the start may continue; set already if the start does not wait."""
        event = self._waiting.get(instance)
        if event is None:
            event = asyncio.Event()
            event.set()
        return event

    def stop_waiting(self, instance: Instance) -> None:
        """Forget a waiting start whose instance is stopped or has ended. Idempotent."""
        self._waiting.pop(instance, None)

    def admit_waiting(self) -> None:
        """Admit the waiting starts that fit now, in the order of arrival. Called when an instance has ended.

        The registry holds the claims of waiting instances too, which must not count against themselves.
        """
        waiting = tuple(self._waiting)
        left = self._left_without(waiting)
        for instance in waiting:
            claim = _claim(instance)
            if left.lacks(claim) is None:
                self._waiting.pop(instance).set()
                left = left.left((claim,))

    def _left_without(self, instances: Iterable[Instance]) -> Capacity:
        """What would be left without the claims of ``instances``."""
        left = self.left()
        for claim in map(claim_of, instances):
            left = left.left((Claim(-claim.memory_mb, -claim.disk_mb),))
        return left


def _claim(instance: Instance) -> Claim:
    return Claim(instance.memory_mb, instance.disk_mb)
