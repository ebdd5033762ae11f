"""Memory and disk: what the host has (`Capacity`), and what an instance or a staging holds (`Claim`).

The claim of a running app is its whole limit, not its present use, since it may grow to its limit at any time.
Pure, except for `host_memory_mb` and `free_disk_mb`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from agent.config import ResourceSettings
from agent.instances.instance import HOLDS, Instance, State
from wsh.units import MIB

#: The part of the host's memory that is not given to apps if `resources.memory_mb` is not configured.
HOST_SHARE = 0.1


class Short(Enum):
    """The resource that is missing. Published texts contain the value (docs/protocol.md, "Exits")."""

    DISK = "disk"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Claim:
    """Memory and disk that an instance or a staging holds, in MB of 1,048,576 bytes."""

    memory_mb: int
    disk_mb: int


NOTHING = Claim(0, 0)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Memory and disk of the host, or what is left of it. Not whole numbers, since the overcommit factors are not."""

    memory_mb: float
    disk_mb: float

    def left(self, claims: Iterable[Claim]) -> Capacity:
        """What remains without ``claims``. It may be negative, so that an overcommitted host is visible."""
        held = tuple(claims)
        return Capacity(
            self.memory_mb - sum(one.memory_mb for one in held),
            self.disk_mb - sum(one.disk_mb for one in held),
        )

    def lacks(self, claim: Claim) -> Short | None:
        """Which resource is too small for ``claim``; None: it fits, also exactly. Disk is checked first (docs/protocol.md, "Start
        message")."""
        if claim.disk_mb > self.disk_mb:
            return Short.DISK
        return Short.MEMORY if claim.memory_mb > self.memory_mb else None


def claim_of(instance: Instance) -> Claim:
    """What an instance holds in its state.

    A crash holds only the bytes of its kept output, since its container is gone. In the original DEA it held its whole disk
    limit, so a few crashes of deleted apps could keep a host full for an hour.
    """
    if instance.state is State.CRASHED:
        return Claim(0, -(-instance.kept_bytes // MIB))
    holds = instance.state in HOLDS
    return Claim(instance.memory_mb, instance.disk_mb) if holds else NOTHING


def make_capacity(settings: ResourceSettings, host_memory_mb: int, free_disk_mb: int) -> Capacity:
    """The host's capacity. Figures that are not configured are taken from the host (the original DEA assumed 16 TiB)."""
    memory = settings.memory_mb or int(host_memory_mb * (1 - HOST_SHARE))
    disk = settings.disk_mb or max(0, free_disk_mb - settings.low_water_mb)
    return Capacity(memory * settings.memory_overcommit_factor, disk * settings.disk_overcommit_factor)


def host_memory_mb() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB


def free_disk_mb(path: Path) -> int:
    seen = os.statvfs(path)
    return seen.f_bavail * seen.f_frsize // MIB
