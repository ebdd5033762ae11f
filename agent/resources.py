"""What this host has to give, and what is promised already. Pure but for the two looks at the host."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from agent.config import ResourceSettings
from agent.instances.instance import HOLDS, Instance, State
from wsh.units import MIB

#: Of the host's memory, what is left to the host where no `memory_mb` is configured.
HOST_SHARE = 0.1


class Short(Enum):
    """What is missing; the published texts are made from the value (docs/protocol.md, "Exits")."""

    DISK = "disk"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Claim:
    memory_mb: int
    disk_mb: int


NOTHING = Claim(0, 0)


@dataclass(frozen=True, slots=True)
class Capacity:
    memory_mb: float
    disk_mb: float

    def left(self, claims: Iterable[Claim]) -> Capacity:
        """Never clamped: an overcommitted host shows it."""
        held = tuple(claims)
        return Capacity(
            self.memory_mb - sum(one.memory_mb for one in held),
            self.disk_mb - sum(one.disk_mb for one in held),
        )

    def lacks(self, claim: Claim) -> Short | None:
        """Equality fits; disk is looked at first (docs/protocol.md, "Start message")."""
        if claim.disk_mb > self.disk_mb:
            return Short.DISK
        return Short.MEMORY if claim.memory_mb > self.memory_mb else None


def claim_of(instance: Instance) -> Claim:
    """A crash holds the bytes that are kept of it, not the disk that the app might have used: its container is gone. In the original
    it held all of it, and a few records of deleted apps closed a host for an hour.
    """
    if instance.state is State.CRASHED:
        return Claim(0, -(-instance.kept_bytes // MIB))
    holds = instance.state in HOLDS
    return Claim(instance.memory_mb, instance.disk_mb) if holds else NOTHING


def make_capacity(settings: ResourceSettings, host_memory_mb: int, free_disk_mb: int) -> Capacity:
    """Without configured figures it follows the host (the original assumed 16 TiB)."""
    memory = settings.memory_mb or int(host_memory_mb * (1 - HOST_SHARE))
    disk = settings.disk_mb or max(0, free_disk_mb - settings.low_water_mb)
    return Capacity(memory * settings.memory_overcommit_factor, disk * settings.disk_overcommit_factor)


def host_memory_mb() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB


def free_disk_mb(path: Path) -> int:
    seen = os.statvfs(path)
    return seen.f_bavail * seen.f_frsize // MIB
