"""Apps as the controller wants them, instances as heartbeats tell them, what to do about the difference.

`decide` is pure: same apps, same observations, same time, same answer. The controller carries it out. Apps
live in one JSON file, replaced atomically.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec

# A start that no heartbeat shows after this long is sent again.
START_GRACE_S = 12.0
# An instance that a heartbeat still shows this long after its stop is told again.
STOP_GRACE_S = 15.0
# Heartbeats this old say nothing any more (three periods of `garrison up`'s two seconds, and a little).
HEARTBEAT_TTL_S = 8.0
# An instance that ran this long clears the crashes before it.
STABLE_AFTER_S = 60.0


class App(msgspec.Struct):
    guid: str
    name: str
    version: str
    instances: int = 1
    memory_mb: int = 256
    disk_mb: int = 1024
    fds: int = 16384
    stack: str = "debian"
    env: dict[str, str] = {}
    command: str | None = None
    buildpack: str | None = None
    health_check_timeout_s: int | None = None
    uris: list[str] = []
    started: bool = False
    droplet_sha1: str | None = None
    droplet_bytes: int = 0
    detected_buildpack: str | None = None
    detected_command: str | None = None


class AppStore:
    """Every app by name, kept in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.apps: dict[str, App] = {}
        if path.exists():
            self.apps = {app.name: app for app in msgspec.json.decode(path.read_bytes(), type=list[App])}

    def save(self) -> None:
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(list(self.apps.values())), indent=2))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)

    def by_guid(self, guid: str) -> App | None:
        return next((app for app in self.apps.values() if app.guid == guid), None)


class InstanceReport(msgspec.Struct, frozen=True):
    droplet: str
    version: str
    instance: str
    index: int
    state: str
    state_timestamp: float


class HostReport(msgspec.Struct, frozen=True):
    dea: str
    droplets: tuple[InstanceReport, ...]


class ReportedExit(msgspec.Struct, frozen=True):
    """`droplet.exited`"""

    droplet: str
    version: str
    instance: str
    index: int
    reason: str
    exit_status: int = -1
    exit_description: str = ""
    crash_timestamp: int | None = None


Slot = tuple[str, str, int]
"""app guid, version, index"""


@dataclass
class Crashes:
    count: int
    last_at: float
    last: ReportedExit


@dataclass
class Observed:
    """What the hosts said last."""

    beats: dict[str, tuple[float, HostReport]] = field(default_factory=dict)
    pending: dict[Slot, float] = field(default_factory=dict)
    crashes: dict[Slot, Crashes] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)  # ids of instances that ended
    stopping: dict[str, float] = field(default_factory=dict)  # ids that were told to stop

    def hear(self, beat: HostReport, now: float) -> None:
        self.beats[beat.dea] = (now, beat)
        for entry in beat.droplets:
            if entry.state in ALIVE:
                self.pending.pop((entry.droplet, entry.version, entry.index), None)

    def exited(self, message: ReportedExit, now: float) -> bool:
        """Counts a crash; a repeat of the same telling counts once. True when it is news."""
        if message.instance in self.gone or message.reason.upper() != "CRASHED":
            return False
        self.gone[message.instance] = now
        slot = (message.droplet, message.version, message.index)
        self.pending.pop(slot, None)
        before = self.crashes.get(slot)
        count = before.count + 1 if before and now - before.last_at < STABLE_AFTER_S else 1
        self.crashes[slot] = Crashes(count, now, message)
        return True

    def entries(self, now: float) -> list[InstanceReport]:
        fresh = [beat for at, beat in self.beats.values() if now - at <= HEARTBEAT_TTL_S]
        return [
            entry
            for beat in fresh
            for entry in beat.droplets
            if entry.instance not in self.gone and entry.instance not in self.stopping
        ]

    def prune(self, now: float) -> bool:
        """True when what `entries` has may be different now."""
        before = len(self.beats), len(self.gone), len(self.stopping)
        self.beats = {dea: kept for dea, kept in self.beats.items() if now - kept[0] <= HEARTBEAT_TTL_S}
        self.pending = {slot: at for slot, at in self.pending.items() if now - at <= START_GRACE_S}
        self.gone = {instance: at for instance, at in self.gone.items() if now - at <= 300}
        self.stopping = {instance: at for instance, at in self.stopping.items() if now - at <= STOP_GRACE_S}
        return before != (len(self.beats), len(self.gone), len(self.stopping))


ALIVE = frozenset({"STARTING", "RUNNING"})


def backoff_s(crash_count: int) -> float:
    """The first two crashes restart at once, then it doubles from 4 s to a minute."""
    return 0.0 if crash_count <= 2 else min(60.0, 4.0 * 2 ** (crash_count - 3))


@dataclass(frozen=True, slots=True)
class StartOrder:
    guid: str
    index: int


@dataclass(frozen=True, slots=True)
class StopOrder:
    guid: str
    instances: tuple[str, ...]
    why: str


def decide(
    apps: Iterable[App], seen: Observed, now: float, staged: Mapping[str, str] = MappingProxyType({})
) -> list[StartOrder | StopOrder]:
    """What makes the observed instances what the apps want. `staged`: versions that are being made, by guid; the host may
    have started index 0 of one before its last reply is here, so these are left alone.
    """
    orders: list[StartOrder | StopOrder] = []
    wanted = {app.guid: app for app in apps}
    by_app: dict[str, list[InstanceReport]] = {}
    for entry in seen.entries(now):
        if entry.state in ALIVE and staged.get(entry.droplet) != entry.version:
            by_app.setdefault(entry.droplet, []).append(entry)
    for guid, entries in by_app.items():
        orders += _stops(guid, wanted.get(guid), entries)
    for app in wanted.values():
        if not app.started or app.droplet_sha1 is None:
            continue
        present = {e.index for e in by_app.get(app.guid, []) if e.version == app.version}
        for index in range(app.instances):
            slot = (app.guid, app.version, index)
            crashed = seen.crashes.get(slot)
            rested = crashed is None or now - crashed.last_at >= backoff_s(crashed.count)
            if index not in present and slot not in seen.pending and rested:
                orders.append(StartOrder(app.guid, index))
    return orders


def _stops(guid: str, app: App | None, entries: list[InstanceReport]) -> list[StopOrder]:
    if app is None:
        return [StopOrder(guid, tuple(e.instance for e in entries), "unknown app")]
    if not app.started:
        return [StopOrder(guid, tuple(e.instance for e in entries), "stopped")]
    current = [e for e in entries if e.version == app.version]
    running = {e.index for e in current if e.state == "RUNNING"}
    orders = []
    # An old version goes once its index runs anew: until then it serves on.
    old = tuple(
        e.instance
        for e in entries
        if e.version != app.version and (e.index in running or e.index >= app.instances)
    )
    if old:
        orders.append(StopOrder(guid, old, "replaced"))
    extra = tuple(e.instance for e in current if e.index >= app.instances)
    if extra:
        orders.append(StopOrder(guid, extra, "scaled down"))
    for index in range(app.instances):
        twins = sorted((e for e in current if e.index == index), key=lambda e: e.state_timestamp)
        if len(twins) > 1 and all(e.state == "RUNNING" for e in twins):
            orders.append(StopOrder(guid, tuple(e.instance for e in twins[1:]), "duplicate"))
    return orders


def status(app: App, seen: Observed, now: float) -> Mapping[str, object]:
    """A row of `garrison apps`: what runs of the app as it is now, and the last crash when not all does. A version before it
    serves on until then: `previous_running`.
    """
    current = [e for e in seen.entries(now) if e.droplet == app.guid]
    states = {e.index: e.state for e in current if e.version == app.version and e.state in ALIVE}
    running = sum(state == "RUNNING" for state in states.values())
    crashes = [
        crash
        for (guid, version, index), crash in seen.crashes.items()
        if (guid, version) == (app.guid, app.version)
        and states.get(index) != "RUNNING"
        and index < app.instances
    ]
    last = max(crashes, key=lambda c: c.last_at, default=None)
    if not app.started:
        state = "stopped"
    elif running == app.instances:
        state = "running"
    elif last is not None:
        state = "crashing"
    else:
        state = "starting"
    told = None
    if last is not None:
        told = {
            "index": last.last.index,
            "instance": last.last.instance,
            "exit_status": last.last.exit_status,
            "description": last.last.exit_description,
            "seconds_ago": round(now - last.last_at, 1),
            "count": last.count,
        }
    return {
        "name": app.name,
        "guid": app.guid,
        "state": state,
        "instances": app.instances,
        "running": running,
        "previous_running": sum(e.state == "RUNNING" and e.version != app.version for e in current),
        "memory_limit_bytes": app.memory_mb << 20,
        "disk_limit_bytes": app.disk_mb << 20,
        "uris": app.uris,
        "buildpack": app.detected_buildpack,
        "instance_states": {str(index): states[index] for index in sorted(states)},
        "crash": told,
    }
