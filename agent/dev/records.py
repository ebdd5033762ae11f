"""The apps that are wanted, the instances that heartbeats report, and what to start and stop because of the difference.

`decide` is pure: its result depends only on the apps, the observations and the time. The controller carries out its orders.
Apps are stored in one JSON file, which is replaced atomically.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec

# A start is published again if no heartbeat shows the instance after this time.
START_GRACE_S = 12.0
# A stop is published again if a heartbeat still shows the instance after this time.
STOP_GRACE_S = 15.0
# Older heartbeats are ignored. `garrison up` makes the agent send one every two seconds.
HEARTBEAT_TTL_S = 8.0
# The crashes of an index are counted anew if the last one is older than this.
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
    """All apps by name, stored in one file."""

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
    """The last reports of the hosts, and the orders that they do not show yet."""

    beats: dict[str, tuple[float, HostReport]] = field(default_factory=dict)
    pending: dict[Slot, float] = field(default_factory=dict)
    crashes: dict[Slot, Crashes] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)  # ids of instances that have ended
    stopping: dict[str, float] = field(default_factory=dict)  # ids of instances with a published stop

    def receive(self, beat: HostReport, now: float) -> None:
        self.beats[beat.dea] = (now, beat)
        for entry in beat.droplets:
            if entry.state in ALIVE:
                self.pending.pop((entry.droplet, entry.version, entry.index), None)

    def exited(self, message: ReportedExit, now: float) -> bool:
        """Counts a crash. False: the message is a repetition, or not of a crash."""
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
        """Drops what is too old. True: `entries` may have another result now."""
        before = len(self.beats), len(self.gone), len(self.stopping)
        self.beats = {dea: kept for dea, kept in self.beats.items() if now - kept[0] <= HEARTBEAT_TTL_S}
        self.pending = {slot: at for slot, at in self.pending.items() if now - at <= START_GRACE_S}
        self.gone = {instance: at for instance, at in self.gone.items() if now - at <= 300}
        self.stopping = {instance: at for instance, at in self.stopping.items() if now - at <= STOP_GRACE_S}
        return before != (len(self.beats), len(self.gone), len(self.stopping))


ALIVE = frozenset({"STARTING", "RUNNING"})


def backoff_s(crash_count: int) -> float:
    """The pause before a restart: none after the first two crashes, then 4 s, doubled with each crash up to a minute."""
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
    """The orders that turn the observed instances into the wanted ones.

    ``staged``: by guid, the version that is being staged. The host may start its index 0 before its last reply has arrived, so
    instances of that version are neither stopped nor counted.
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
    # An instance of a former version keeps serving until the new version runs with the same index.
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
        same = sorted((e for e in current if e.index == index), key=lambda e: e.state_timestamp)
        if len(same) > 1 and all(e.state == "RUNNING" for e in same):
            orders.append(StopOrder(guid, tuple(e.instance for e in same[1:]), "duplicate"))
    return orders


def status(app: App, seen: Observed, now: float) -> Mapping[str, object]:
    """A row of `garrison apps`: the running instances of the present version, and the last crash if not all run.

    ``previous_running``: the instances of the former version, which serve until the present one runs.
    """
    current = [e for e in seen.entries(now) if e.droplet == app.guid]
    states = {e.index: e.state for e in current if e.version == app.version and e.state in ALIVE}
    running = sum(state == "RUNNING" for state in states.values())
    crashes = [
        known
        for (guid, version, index), known in seen.crashes.items()
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
    crash = None
    if last is not None:
        crash = {
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
        "crash": crash,
    }
