"""The development controller: the Cloud Controller's and the health manager's part on the bus, for a laptop.

It knows hosts by their adverts and instances by heartbeats and exits, never by asking the agent in private.
With each of these `records.decide` says what to start and stop. Staging is one request with two replies; a
droplet checksum in the second means that the host has started index 0 by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.bus.client import NotConnected, PeerClient
from agent.dev import messages
from agent.dev.placement import AdvertMessage, Pool
from agent.dev.records import App, Exit, Heartbeat, Observed, StartOrder, StopOrder, Store, decide, status

RECONCILE_S = 0.5
STAGING_TIMEOUT_S = 900.0
FIND_HOST_TIMEOUT_S = 12.0
STATS_TIMEOUT_S = 1.0


class Refused(Exception):
    """The person asked for something that cannot be; `status` is the HTTP one."""

    def __init__(self, http_status: int, why: str) -> None:
        super().__init__(why)
        self.http_status = http_status


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
        for name in ("packages", "droplets", "caches"):
            (state_dir / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.store = Store(state_dir / "apps.json")
        self.seen = Observed()
        self.hosts, self.stagers = Pool(), Pool()
        self.busy: dict[str, asyncio.Event] = {}  # guids being staged; set when that is over
        self._heard = asyncio.Event()
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

    # What the hosts say

    def _on_advert(self, _subject: str, _reply: str, data: bytes) -> None:
        self.hosts.hear(msgspec.json.decode(data, type=AdvertMessage), time.monotonic())
        self._heard.set()

    def _on_staging_advert(self, _subject: str, _reply: str, data: bytes) -> None:
        self.stagers.hear(msgspec.json.decode(data, type=AdvertMessage), time.monotonic())
        self._heard.set()

    def _on_shutdown(self, _subject: str, _reply: str, data: bytes) -> None:
        host_id = str(msgspec.json.decode(data)["id"])
        self.hosts.forget(host_id)
        self.stagers.forget(host_id)

    def _on_heartbeat(self, _subject: str, _reply: str, data: bytes) -> None:
        self.seen.hear(msgspec.json.decode(data, type=Heartbeat), time.monotonic())
        self._heard.set()

    def _on_exit(self, _subject: str, _reply: str, data: bytes) -> None:
        message = msgspec.json.decode(data, type=Exit)
        if self.seen.exited(message, time.monotonic()):
            self._log.info(
                "instance_crashed",
                app=message.droplet,
                index=message.index,
                status=message.exit_status,
                why=message.exit_description,
            )
        self._heard.set()

    async def wait_heard(self, timeout_s: float) -> None:
        """Until some host said something new, or the time is over."""
        self._heard.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._heard.wait()

    # Desired state

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.bus.run(), name="controller-bus")
            group.create_task(self._reconcile_for_ever(), name="controller-reconcile")

    async def _reconcile_for_ever(self) -> None:
        while True:
            try:
                await self.reconcile()
            except NotConnected:
                self._log.debug("reconcile_waits_for_bus")
            except Exception:  # outermost frame of the task: one bad round must not end the controller
                self._log.exception("reconcile_failed")
            await self.wait_heard(RECONCILE_S)
            await asyncio.sleep(0.05)

    async def reconcile(self) -> None:
        now = time.monotonic()
        self.hosts.prune(now)
        self.stagers.prune(now)
        self.seen.prune(now)
        if not self.bus.connected or not self.seen.beats:
            return  # no host has spoken yet: nothing is known to be missing
        for order in decide(self.store.apps.values(), self.seen, now, frozenset(self.busy)):
            match order:
                case StartOrder(guid, index):
                    app = self.store.by_guid(guid)
                    assert app is not None
                    await self._start(app, index, now)
                case StopOrder(guid, instances, why):
                    self._log.info("stopping", app=guid, instances=list(instances), why=why)
                    await self._say("dea.stop", {"droplet": guid, "instances": list(instances)})
                    self.seen.stopping.update(dict.fromkeys(instances, now))

    async def _start(self, app: App, index: int, now: float) -> None:
        host = self.hosts.find_host(app.guid, app.stack, app.memory_mb, app.disk_mb, self._rng)
        if host is None:
            return  # `apps` shows that it does not run; the next advert may have room
        uri = f"{self._base_uri()}/staging/droplets/{app.guid}/download"
        body = messages.start_message(app, index, droplet_uri=uri, version=app.version, sha1=app.droplet_sha1)
        self.seen.pending[(app.guid, app.version, index)] = now
        self.hosts.took(host, app.guid, app.memory_mb)
        self._log.info("starting", app=app.name, index=index, host=host)
        await self._say(f"dea.{host}.start", body)

    async def _say(self, subject: str, body: dict[str, Any]) -> None:
        await self.bus.publish(subject, msgspec.json.encode(body))

    # What a person asks for

    def app(self, name: str) -> App:
        try:
            return self.store.apps[name]
        except KeyError:
            raise Refused(404, f"there is no app {name!r}") from None

    def put(self, name: str, changes: dict[str, Any]) -> App:
        """Creates the app or changes what the next staging or start uses."""
        app = self.store.apps.get(name)
        if app is None:
            app = App(guid=str(uuid.uuid4()), name=name, version=str(uuid.uuid4()))
            app.uris = [f"{name}.localhost"]
        try:
            merged = msgspec.convert({**msgspec.to_builtins(app), **changes, "name": name}, App)
        except msgspec.ValidationError as error:
            raise Refused(400, str(error)) from error
        if not 0 <= merged.instances <= 1000 or merged.memory_mb <= 0 or merged.disk_mb <= 0:
            raise Refused(400, "instances, memory_mb and disk_mb must be positive")
        self.store.apps[name] = merged
        self.store.save()
        return merged

    async def scale(self, name: str, instances: int) -> None:
        app = self.app(name)
        if not 0 <= instances <= 1000:
            raise Refused(400, f"instances: expected 0 to 1000, got {instances}")
        before, app.instances = app.instances, instances
        self.store.save()
        if instances < before:
            gone = list(range(instances, before))
            await self._say("dea.stop", {"droplet": app.guid, "version": app.version, "indices": gone})
            self._told_to_stop(app.guid, lambda index: index >= instances)
        await self.reconcile()

    async def stop(self, name: str) -> None:
        app = self.app(name)
        app.started = False
        self.store.save()
        await self._say("dea.stop", {"droplet": app.guid})
        self._told_to_stop(app.guid, lambda _index: True)
        self._forget_crashes(app.guid)

    async def start(self, name: str) -> None:
        app = self.app(name)
        if app.droplet_sha1 is None:
            raise Refused(409, f"{name} has no droplet: push it first")
        app.started = True
        self.store.save()
        self._forget_crashes(app.guid)
        await self.reconcile()

    async def delete(self, name: str) -> None:
        app = self.app(name)
        await self.stop(name)
        del self.store.apps[name]
        self.store.save()
        for folder, suffix in (("packages", ".zip"), ("droplets", ".tgz"), ("caches", ".tgz")):
            (self.files / folder / f"{app.guid}{suffix}").unlink(missing_ok=True)

    def _told_to_stop(self, guid: str, which: Callable[[int], bool]) -> None:
        now = time.monotonic()
        for entry in self.seen.entries(now):
            if entry.droplet == guid and which(entry.index):
                self.seen.stopping[entry.instance] = now
        self.seen.pending = {s: at for s, at in self.seen.pending.items() if s[0] != guid or not which(s[2])}

    def _forget_crashes(self, guid: str) -> None:
        self.seen.crashes = {slot: c for slot, c in self.seen.crashes.items() if slot[0] != guid}

    def status(self, app: App) -> dict[str, Any]:
        row = dict(status(app, self.seen, time.monotonic()))
        if app.guid in self.busy and not row["running"]:
            row["state"] = "staging"
        return row

    async def stats(self, app: App) -> list[dict[str, Any]]:
        """What `dea.find.droplet` answers for the running instances, within a second."""
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

    # Staging

    async def stage(self, name: str) -> AsyncGenerator[dict[str, Any], None]:
        """Stages the uploaded package; yields what happens: `task`, `set_up`, then `staged` or `failed`."""
        app = self.app(name)
        if not (self.files / "packages" / f"{app.guid}.zip").exists():
            raise Refused(409, f"{name} has no package: upload one first")
        if app.guid in self.busy:
            raise Refused(409, f"{name} is being staged already")
        over = self.busy[app.guid] = asyncio.Event()
        try:
            async for event in self._staging(app):
                yield event
        finally:
            del self.busy[app.guid]
            over.set()

    async def stop_staging(self, name: str) -> asyncio.Event | None:
        """The host answers the staging's own request, which then ends as failed: the event. None: none is under way."""
        app = self.app(name)
        over = self.busy.get(app.guid)
        if over is not None:
            await self._say("staging.stop", {"app_id": app.guid})
        return over

    async def _staging(self, app: App) -> AsyncIterator[dict[str, Any]]:
        task_id, version = uuid.uuid4().hex, str(uuid.uuid4())
        has_cache = (self.files / "caches" / f"{app.guid}.tgz").exists()
        body = messages.staging_message(
            app, task_id=task_id, version=version, base=self._base_uri(), has_cache=has_cache
        )
        host = await self._find_stager(app, body)
        if host is None:
            yield {"event": "failed", "type": "NoCompatibleCell", "error": self._no_stager(app, body)}
            return
        yield {"event": "task", "task_id": task_id, "guid": app.guid, "host": host}
        self.stagers.took(host, None, body["memory_limit"])
        await self._say("staging.stop", {"app_id": app.guid})
        payload = msgspec.json.encode(body)
        async with self.bus.request_many(f"staging.{host}.start", payload) as replies:
            for stage in ("set_up", "staged"):
                try:
                    async with asyncio.timeout(STAGING_TIMEOUT_S):
                        data = await replies.get()
                except TimeoutError:
                    yield {"event": "failed", "type": "StagingTimeExpired", "error": "no reply in 15 minutes"}
                    return
                if not data:
                    yield {"event": "failed", "type": "StagingError", "error": f"host {host} does not listen"}
                    return
                reply = msgspec.json.decode(data, type=messages.StagingReply)
                if reply.error is not None or reply.error_info is not None:
                    info = reply.error_info or {}
                    error = info.get("message") or reply.error
                    yield {"event": "failed", "type": info.get("type", "StagingError"), "error": error}
                    return
                if stage == "set_up":
                    yield {"event": "set_up"}
        if reply.droplet_sha1 is None:
            yield {"event": "failed", "type": "StagingError", "error": "the host told no droplet checksum"}
            return
        self._staged(app, reply, version)
        yield {
            "event": "staged",
            "buildpack": app.detected_buildpack,
            "command": app.command or app.detected_command,
            "droplet_sha1": app.droplet_sha1,
            "droplet_bytes": app.droplet_bytes,
        }

    def _staged(self, app: App, reply: messages.StagingReply, version: str) -> None:
        app.version = version
        app.droplet_sha1 = reply.droplet_sha1
        app.detected_buildpack = reply.detected_buildpack
        app.detected_command = reply.detected_start_command
        droplet = self.files / "droplets" / f"{app.guid}.tgz"
        app.droplet_bytes = droplet.stat().st_size if droplet.exists() else 0
        app.started = True
        self._forget_crashes(app.guid)
        # The host starts index 0 by itself: not missing until the grace is over.
        self.seen.pending[(app.guid, version, 0)] = time.monotonic()
        self.store.save()

    async def _find_stager(self, app: App, body: dict[str, Any]) -> str | None:
        deadline = time.monotonic() + FIND_HOST_TIMEOUT_S
        while True:
            self.stagers.prune(time.monotonic())
            limits = body["memory_limit"], body["disk_limit"]
            host = self.stagers.find_stager(app.stack, *limits, self._rng)
            if host is not None or time.monotonic() >= deadline:
                return host
            await self.wait_heard(1.0)

    def _no_stager(self, app: App, body: dict[str, Any]) -> str:
        if not self.stagers.hosts:
            return "no host advertises itself for staging"
        if not any(app.stack in host.stacks for host in self.stagers.hosts.values()):
            return f"no host has the stack {app.stack!r}"
        return (
            f"no host has {body['memory_limit']} MiB of memory and {body['disk_limit']} MiB of disk to give"
        )
