"""Chooses the host of an instance or a staging by the Cloud Controller's rules. Pure. (docs/protocol.md, "Adverts")

A pool keeps the last advert of each host. A placement changes the kept advert (less memory, one more instance of the app) until
the next one arrives, so that many starts at once are spread over the hosts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

ADVERT_TIMEOUT_S = 10.0


class AdvertMessage(msgspec.Struct, frozen=True):
    """`dea.advertise` and `staging.advertise`. The latter has no counts and no zone."""

    id: str
    stacks: tuple[str, ...]
    available_memory: float
    available_disk: float | None = None
    app_id_to_count: Mapping[str, int] = {}
    placement_properties: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Host:
    id: str
    stacks: tuple[str, ...]
    memory_mb: float
    disk_mb: float | None
    counts: Mapping[str, int]
    zone: str
    received_at: float

    def fits(self, stack: str, memory_mb: float, disk_mb: float) -> bool:
        enough_disk = self.disk_mb is None or self.disk_mb >= disk_mb
        return stack in self.stacks and self.memory_mb >= memory_mb and enough_disk


@dataclass
class HostPool:
    hosts: dict[str, Host] = field(default_factory=dict)

    def receive(self, advert: AdvertMessage, now: float) -> None:
        self.hosts[advert.id] = Host(
            id=advert.id,
            stacks=advert.stacks,
            memory_mb=advert.available_memory,
            disk_mb=advert.available_disk,
            counts=advert.app_id_to_count,
            zone=advert.placement_properties.get("zone", "default"),
            received_at=now,
        )

    def forget(self, host_id: str) -> None:
        self.hosts.pop(host_id, None)

    def prune(self, now: float) -> None:
        self.hosts = {h.id: h for h in self.hosts.values() if now - h.received_at <= ADVERT_TIMEOUT_S}

    def note_placement(self, host_id: str, app_id: str | None, memory_mb: float) -> None:
        """Changes the kept advert, so that the next choice takes this placement into account."""
        host = self.hosts.get(host_id)
        if host is None:
            return
        counts = dict(host.counts)
        if app_id is not None:
            counts[app_id] = counts.get(app_id, 0) + 1
        self.hosts[host_id] = replace(host, memory_mb=host.memory_mb - memory_mb, counts=counts)

    def find_host(
        self, app_id: str, stack: str, memory_mb: float, disk_mb: float, rng: random.Random
    ) -> str | None:
        """Takes the zones with the fewest instances of the app, of their hosts those with the fewest, of these the upper half by
        memory, and draws one.
        """
        fitting = [h for h in self.hosts.values() if h.fits(stack, memory_mb, disk_mb)]
        if not fitting:
            return None
        by_zone: dict[str, int] = {}
        for host in self.hosts.values():
            by_zone[host.zone] = by_zone.get(host.zone, 0) + host.counts.get(app_id, 0)
        fewest_in_zone = min(by_zone[h.zone] for h in fitting)
        fitting = [h for h in fitting if by_zone[h.zone] == fewest_in_zone]
        fewest = min(h.counts.get(app_id, 0) for h in fitting)
        fitting = sorted((h for h in fitting if h.counts.get(app_id, 0) == fewest), key=lambda h: h.memory_mb)
        enough = fitting[len(fitting) // 2].memory_mb
        return rng.choice([h for h in fitting if h.memory_mb >= enough]).id

    def why_none(self, stack: str, memory_mb: float, disk_mb: float) -> str:
        """Why no host fits, as a text for the user."""
        if not self.hosts:
            return "no host has sent an advert"
        able = [host for host in self.hosts.values() if stack in host.stacks]
        if not able:
            return f"no host has the stack {stack!r}"
        most = max(able, key=lambda host: host.memory_mb)
        left = f"{most.memory_mb:.0f} MiB of memory"
        if most.disk_mb is not None:
            left += f" and {most.disk_mb:.0f} MiB of disk"
        return (
            f"no host has {memory_mb:.0f} MiB of memory and {disk_mb:.0f} MiB of disk left; "
            f"the largest has {left}"
        )

    def find_stager(self, stack: str, memory_mb: float, disk_mb: float, rng: random.Random) -> str | None:
        """Draws one of the five hosts with the most memory."""
        fitting = [h for h in self.hosts.values() if h.fits(stack, memory_mb, disk_mb)]
        top = sorted(fitting, key=lambda h: h.memory_mb)[-5:]
        return rng.choice(top).id if top else None
