"""The development controller: does the work of the Cloud Controller and the health manager, for one machine.

It learns about hosts from adverts, and about instances from heartbeats and exits; it never uses the agent's control socket. After
each of these messages `records.decide` computes what to start and stop. A push (pushes.py) becomes the app once its droplet is
there. A checksum in the last reply of a staging means that the host has started index 0 already.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.bus.client import NotConnected, PeerClient
from agent.dev import messages
from agent.dev.changes import ChangeCount
from agent.dev.placement import AdvertMessage, HostPool
from agent.dev.pushes import Changes, Push, Pushes, PushRefused, until_over
from agent.dev.records import (
    App,
    AppStore,
    HostReport,
    Observed,
    ReportedExit,
    Slot,
    StartOrder,
    StopOrder,
    decide,
    status,
)
from agent.dev.stagings import Failed, Stager

#: The time between two rounds when nothing changes. It is a clock: the ends of grace periods and silent hosts cause no message.
RECONCILE_S = 0.5
#: The least time between two rounds, so that messages that arrive together cause one round.
ROUND_GAP_S = 0.05
STATS_TIMEOUT_S = 1.0
STOP_STAGING_S = 10.0


class Controller:
    def __init__(
        self,
        *,
        state_dir: Path,
        servers: tuple[str, ...],
        base_uri: Callable[[], str],
        log: Any,
        rng: random.Random | None = None,
    ) -> None:
        self.files = state_dir
        self.store = AppStore(state_dir / "apps.json")
        self.changes = ChangeCount()
        self.pushes = Pushes(state_dir, self.store, self.changes.add)
        self.seen = Observed()
        self.hosts, self.stagers = HostPool(), HostPool()
        self.waiting: dict[Slot, str] = {}  # the starts for which no host has room, with the reason
        self._base_uri = base_uri
        self._rng = rng or random.Random()
        self._log = log
        self.bus = PeerClient(
            servers, name="garrison-dev-controller", on_connected=lambda: log.info("bus_connected"), log=log
        )
        self.bus.subscribe("dea.advertise", self._on_advert)
        self.bus.subscribe("staging.advertise", self._on_staging_advert)
        self.bus.subscribe("dea.shutdown", self._on_shutdown)
        self.bus.subscribe("dea.heartbeat", self._on_heartbeat)
        self.bus.subscribe("droplet.exited", self._on_exit)

    # Messages of the hosts

    def _on_advert(self, _subject: str, _reply: str, data: bytes) -> None:
        self.hosts.receive(msgspec.json.decode(data, type=AdvertMessage), time.monotonic())
        self.changes.add()

    def _on_staging_advert(self, _subject: str, _reply: str, data: bytes) -> None:
        self.stagers.receive(msgspec.json.decode(data, type=AdvertMessage), time.monotonic())
        self.changes.add()

    def _on_shutdown(self, _subject: str, _reply: str, data: bytes) -> None:
        host_id = str(msgspec.json.decode(data)["id"])
        self.hosts.forget(host_id)
        self.stagers.forget(host_id)
        self.changes.add()

    def _on_heartbeat(self, _subject: str, _reply: str, data: bytes) -> None:
        self.seen.receive(msgspec.json.decode(data, type=HostReport), time.monotonic())
        self.changes.add()

    def _on_exit(self, _subject: str, _reply: str, data: bytes) -> None:
        message = msgspec.json.decode(data, type=ReportedExit)
        if self.seen.exited(message, time.monotonic()):
            self._log.info(
                "instance_crashed",
                app=message.droplet,
                index=message.index,
                status=message.exit_status,
                why=message.exit_description,
            )
        self.changes.add()

    async def wait_host(self, timeout_s: float) -> str | None:
        """Waits for a host that takes instances and stagings. None: there was none in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            known, now = self.changes.number, time.monotonic()
            if ready := set(self.hosts.hosts) & set(self.stagers.hosts):
                return min(ready)
            if now >= deadline:
                return None
            await self.changes.wait(known, deadline - now)

    # Desired state

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.bus.run(), name="controller-bus")
            group.create_task(self._reconcile_for_ever(), name="controller-reconcile")

    async def _reconcile_for_ever(self) -> None:
        while True:
            known = self.changes.number  # before the round, so that a change during it causes another one
            try:
                await self.reconcile()
            except NotConnected:
                self._log.debug("reconcile_waits_for_bus")
            except Exception:  # outermost frame: an error in one round must not end the controller
                self._log.exception("reconcile_failed")
            await self.changes.wait(known, RECONCILE_S)
            await asyncio.sleep(ROUND_GAP_S)

    async def reconcile(self) -> None:
        now = time.monotonic()
        self.hosts.prune(now)
        self.stagers.prune(now)
        if self.seen.prune(now):
            self.changes.add()
        self.pushes.end_idle(now)
        if not self.bus.connected or not self.seen.beats:
            return  # there was no heartbeat yet, so it is unknown which instances are missing
        wanted: set[Slot] = set()
        for order in decide(self.store.apps.values(), self.seen, now, self.pushes.staged_versions()):
            match order:
                case StartOrder(guid, index):
                    app = self.store.by_guid(guid)
                    if app is None:  # deleted during this round
                        continue
                    wanted.add((guid, app.version, index))
                    await self._start(app, index, now)
                case StopOrder(guid, instances, why):
                    self._log.info("stopping", app=guid, instances=list(instances), why=why)
                    await self._publish("dea.stop", {"droplet": guid, "instances": list(instances)})
                    self.seen.stopping.update(dict.fromkeys(instances, now))
                    self.changes.add()
        self._set_waiting({slot: why for slot, why in self.waiting.items() if slot in wanted})

    def _set_waiting(self, waiting: dict[Slot, str]) -> None:
        if waiting != self.waiting:
            self.waiting = waiting
            self.changes.add()

    async def _start(self, app: App, index: int, now: float) -> None:
        host = self.hosts.find_host(app.guid, app.stack, app.memory_mb, app.disk_mb, self._rng)
        slot = app.guid, app.version, index
        if host is None:  # tried again in each round, since the next advert may have room
            why = self.hosts.why_none(app.stack, app.memory_mb, app.disk_mb)
            self._set_waiting({**self.waiting, slot: why})
            return
        self._set_waiting({other: why for other, why in self.waiting.items() if other != slot})
        uri = f"{self._base_uri()}/staging/droplets/{app.version}/download"
        body = messages.start_message(app, index, droplet_uri=uri, version=app.version, sha1=app.droplet_sha1)
        self.seen.pending[slot] = now
        self.hosts.note_placement(host, app.guid, app.memory_mb)
        self._log.info("starting", app=app.name, index=index, host=host)
        await self._publish(f"dea.{host}.start", body)

    async def _publish(self, subject: str, body: dict[str, Any]) -> None:
        await self.bus.publish(subject, msgspec.json.encode(body))

    # Requests of the user

    def app(self, name: str) -> App:
        try:
            return self.store.apps[name]
        except KeyError:
            pass
        if self.pushes.of(name, time.monotonic()) is not None:
            raise PushRefused(409, f"{name} is being pushed for the first time")
        raise PushRefused(404, f"there is no app {name!r}")

    def rows(self) -> list[dict[str, Any]]:
        """The row of every app, also of those that are being pushed for the first time."""
        new = [push.draft for push in self.pushes.all() if push.is_new]
        return [self.status(app) for app in sorted((*self.store.apps.values(), *new), key=lambda a: a.name)]

    async def scale(self, name: str, instances: int) -> None:
        app = self.app(name)
        if not 0 <= instances <= 1000:
            raise PushRefused(400, f"instances: expected 0 to 1000, got {instances}")
        before, app.instances = app.instances, instances
        self._save()
        if instances < before:
            gone = list(range(instances, before))
            await self._publish("dea.stop", {"droplet": app.guid, "version": app.version, "indices": gone})
            self._note_stopping(app.guid, lambda index: index >= instances)
        await self.reconcile()

    async def stop(self, name: str) -> None:
        app = self.app(name)
        app.started = False
        self._save()
        await self._publish("dea.stop", {"droplet": app.guid})
        self._note_stopping(app.guid, lambda _index: True)
        self._forget_crashes(app.guid)

    async def start(self, name: str) -> None:
        app = self.app(name)
        if app.droplet_sha1 is None:
            raise PushRefused(409, f"{name} has no droplet: push it first")
        app.started = True
        self._save()
        self._forget_crashes(app.guid)
        await self.reconcile()

    async def delete(self, name: str) -> None:
        push = self.pushes.of(name, time.monotonic())
        if push is not None:
            await self.give_up(push)
            if push.is_new:
                return
        app = self.app(name)
        await self.stop(name)
        del self.store.apps[name]
        self._save()
        self.pushes.forget(app)

    def _save(self) -> None:
        self.changes.add()  # before the write: the app in memory has changed even if that fails
        self.store.save()

    def _note_stopping(self, guid: str, which: Callable[[int], bool]) -> None:
        now = time.monotonic()
        for entry in self.seen.entries(now):
            if entry.droplet == guid and which(entry.index):
                self.seen.stopping[entry.instance] = now
        self.seen.pending = {s: at for s, at in self.seen.pending.items() if s[0] != guid or not which(s[2])}
        self.changes.add()

    def _forget_crashes(self, guid: str) -> None:
        self.seen.crashes = {slot: c for slot, c in self.seen.crashes.items() if slot[0] != guid}
        self.changes.add()

    def status(self, app: App) -> dict[str, Any]:
        now = time.monotonic()
        row = dict(status(app, self.seen, now))
        push = self.pushes.of(app.name, now)
        row["pushing"] = push is not None
        row["waiting"] = {
            str(index): why
            for (guid, version, index), why in self.waiting.items()
            if (guid, version) == (app.guid, app.version) and index < app.instances and app.started
        }
        if push is not None and not row["running"]:
            row["state"] = "staging"
        return row

    async def stats(self, app: App) -> list[dict[str, Any]]:
        """The replies to `dea.find.droplet` of the running instances that arrive within a second."""
        expected = int(self.status(app)["running"])
        if expected == 0 or not self.bus.connected:
            return []
        request = {"droplet": app.guid, "include_stats": True, "states": ["RUNNING"], "version": app.version}
        found: list[dict[str, Any]] = []
        async with self.bus.request_many("dea.find.droplet", msgspec.json.encode(request)) as answers:
            try:
                async with asyncio.timeout(STATS_TIMEOUT_S):
                    while len(found) < expected:
                        data = await answers.get()
                        if data:
                            found.append(msgspec.json.decode(data))
            except TimeoutError:
                self._log.debug("stats_incomplete", app=app.name, expected=expected, got=len(found))
        return found

    # Pushes

    def claim(self, name: str, changes: Changes) -> Push:
        return self.pushes.claim(name, changes, time.monotonic())

    async def stage(self, push: Push) -> AsyncGenerator[dict[str, Any], None]:
        """Stages the uploaded package. Yields the events `task` and `set_up`, then `staged` or `failed`."""
        name = push.draft.name
        if not self.pushes.package(push.id).exists():
            raise PushRefused(409, f"this push of {name} has no package: upload one first")
        if push.staging:
            raise PushRefused(409, f"this push of {name} is being staged already")
        push.staging = True
        has_cache = self.pushes.cache(push.draft.guid).exists()
        stager = Stager(self.bus, self.stagers, self._rng, self.changes)
        try:
            events = stager.stage(push, self._base_uri(), has_cache=has_cache)
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, messages.ReceivedStagingReply):
                        event = self._staged(push, event)
                    if isinstance(event, Failed):
                        event = {"event": "failed", "type": event.type, "error": event.error}
                    yield event
        finally:
            push.staging = False
            self.pushes.end(push)

    async def give_up(self, push: Push) -> None:
        """Ends a push that has not become the app. Waits until its staging, if there is one, has ended."""
        if not push.staging:
            push.given_up = True
            self.pushes.end(push)
            return
        await self.leave(push)  # this also ends the request that waits for the staging
        await until_over(push, STOP_STAGING_S)

    async def leave(self, push: Push) -> None:
        """Stops the staging of a push whose result nobody needs any more."""
        push.given_up = True
        await self._publish("staging.stop", {"app_id": push.draft.guid})

    def _staged(self, push: Push, reply: messages.ReceivedStagingReply) -> dict[str, Any] | Failed:
        sha1 = reply.droplet_sha1 or push.droplet_sha1
        if push.given_up:
            return Failed("StagingError", "the push was given up")
        if sha1 is None or push.droplet_sha1 is None:
            return Failed("StagingError", "the host did not upload a droplet")
        if sha1 != push.droplet_sha1:
            return Failed(
                "StagingError", f"the uploaded droplet has the checksum {push.droplet_sha1}, expected {sha1}"
            )
        try:
            app = self.pushes.commit(
                push,
                droplet_sha1=sha1,
                detected_buildpack=reply.detected_buildpack,
                detected_command=reply.detected_start_command,
            )
        except OSError as error:
            return Failed("StagingError", f"apps.json cannot be written: {error.strerror}")
        self._forget_crashes(app.guid)
        if reply.droplet_sha1 is not None:
            # The host starts index 0 itself, so it counts as pending until the grace period is over.
            self.seen.pending[(app.guid, app.version, 0)] = time.monotonic()
        return {
            "event": "staged",
            "buildpack": app.detected_buildpack,
            "command": app.command or app.detected_command,
            "droplet_sha1": app.droplet_sha1,
            "droplet_bytes": app.droplet_bytes,
        }
