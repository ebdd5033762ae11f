"""A development controller and gateway over a real nats-server, with a fake agent as peer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import structlog
from aiohttp import web

from agent.bus.client import PeerClient
from agent.dev import children
from agent.dev.api import USER, Api, ControllerInfo
from agent.dev.controller import Controller
from agent.dev.gateway import Gateway

PASSWORD = "secret"
DROPLET = b"\x1f\x8b" + bytes(range(256)) * 100
DROPLET_SHA1 = hashlib.sha1(DROPLET).hexdigest()
LOG = structlog.get_logger()


class FakeAgent:
    """One host: every started instance is RUNNING at once. It publishes heartbeats, and replies to stagings as the test has set."""

    def __init__(self, servers: tuple[str, ...]) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.instances: dict[str, dict[str, Any]] = {}
        self.stage: Callable[[dict[str, Any]], Awaitable[list[dict[str, Any]]]] = no_reply
        self.news = asyncio.Event()
        self._answers: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._stagings: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.bus = PeerClient(servers, name="fake-agent", on_connected=lambda: None, log=LOG)
        for subject in ("dea.host1.start", "dea.stop", "staging.stop", "router.start"):
            self.bus.subscribe(subject, self._on_word)
        self.bus.subscribe("staging.host1.start", self._on_stage)
        self.bus.subscribe("dea.find.droplet", self._on_find)

    def _on_word(self, subject: str, _reply: str, data: bytes) -> None:
        body = msgspec.json.decode(data)
        self.heard.append((subject, body))
        if subject == "dea.host1.start":
            self.run_one(body)
        elif subject == "dea.stop":
            for instance, started in list(self.instances.items()):
                if (
                    started["droplet"] == body["droplet"]
                    and instance in (body.get("instances") or [instance])
                    and started["index"] in (body.get("indices") or [started["index"]])
                ):
                    del self.instances[instance]
        self.news.set()

    def run_one(self, body: dict[str, Any]) -> str:
        instance = f"i{len(self.heard)}-{body['index']}"
        self.instances[instance] = body
        return instance

    def _on_stage(self, _subject: str, reply: str, data: bytes) -> None:
        body = msgspec.json.decode(data)
        self.heard.append(("staging.host1.start", body))
        self._stagings.put_nowait((reply, body))

    def _on_find(self, _subject: str, reply: str, data: bytes) -> None:
        body = msgspec.json.decode(data)
        for instance, started in self.instances.items():
            if started["droplet"] == body["droplet"]:
                found = {"instance": instance, "index": started["index"], "stats": {"uptime": 5}}
                self._answers.put_nowait((reply, msgspec.json.encode(found)))

    async def say(self, subject: str, body: dict[str, Any]) -> None:
        await self.bus.publish(subject, msgspec.json.encode(body))

    async def beat(self) -> None:
        advert = {"id": "host1", "stacks": ["debian"], "available_memory": 4096, "available_disk": 9999}
        await self.say("dea.advertise", {**advert, "app_id_to_count": {}})
        await self.say("staging.advertise", advert)
        entries = [
            {"cc_partition": "default", "droplet": b["droplet"], "version": b["version"], "instance": i,
             "index": b["index"], "state": "RUNNING", "state_timestamp": 1.5}
            for i, b in self.instances.items()
        ]  # fmt: skip
        await self.say("dea.heartbeat", {"dea": "host1", "droplets": entries})

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.bus.run())
            group.create_task(self._beat_for_ever())
            group.create_task(self._answer_for_ever())
            group.create_task(self._stage_for_ever())

    async def _beat_for_ever(self) -> None:
        while True:
            await self.bus.wait_connected()
            with contextlib.suppress(ConnectionError):
                await self.beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):  # not wait_for, which may lose a cancellation in 3.11
                    await self.news.wait()
            self.news.clear()

    async def _answer_for_ever(self) -> None:
        while True:
            reply, data = await self._answers.get()
            await self.bus.publish(reply, data)

    async def _stage_for_ever(self) -> None:
        while True:
            reply, body = await self._stagings.get()
            for answer in await self.stage(body):
                self._answers.put_nowait((reply, msgspec.json.encode(answer)))


async def no_reply(_body: dict[str, Any]) -> list[dict[str, Any]]:
    return []


def files_of(state: Path) -> list[Path]:
    return [path for folder in ("packages", "droplets", "caches") for path in (state / folder).iterdir()]


class World:
    def __init__(self, agent: FakeAgent, controller: Controller, gateway: Gateway, base: str) -> None:
        self.agent, self.controller, self.gateway, self.base = agent, controller, gateway, base
        login = aiohttp.encode_basic_auth(USER, PASSWORD)
        self.http = aiohttp.ClientSession(headers={"Authorization": login})

    async def call(self, method: str, path: str, **more: Any) -> Any:
        async with self.http.request(method, self.base + path, **more) as response:
            assert response.status < 300, await response.text()
            return msgspec.json.decode(await response.read() or b"null")

    async def claimed(self, name: str, **changes: Any) -> str:
        """Begins a push and uploads its package. Returns the path of the push."""
        claim = await self.call("POST", f"/v1/apps/{name}/pushes", json=changes)
        path = f"/v1/apps/{name}/pushes/{claim['push']}"
        await self.call("PUT", f"{path}/package", data=b"zip")
        return path

    async def events(self, path: str) -> list[dict[str, Any]]:
        async with self.http.post(f"{self.base}{path}/stage") as response:
            assert response.status == 200, await response.text()
            return [msgspec.json.decode(line) async for line in response.content]

    async def upload(self, url: str, droplet: bytes) -> Any:
        form = aiohttp.FormData()
        form.add_field(
            "upload[droplet]", droplet, filename="droplet.tgz", content_type="application/octet-stream"
        )
        async with self.http.post(url, data=form) as response:
            return response.status, msgspec.json.decode(await response.read())

    def stages_well(self, *, droplet: bytes = DROPLET, starts: bool = True) -> None:
        """From now on the fake agent uploads a droplet, sends both replies and starts index 0."""

        async def stage(body: dict[str, Any]) -> list[dict[str, Any]]:
            assert (await self.upload(body["upload_uri"], droplet))[0] == 201
            await self.upload(body["buildpack_cache_upload_uri"], b"cache")
            sha1 = hashlib.sha1(droplet).hexdigest()
            if starts:
                self.agent.run_one({**body["start_message"], "sha1": sha1})
            return [
                {"task_id": body["task_id"], "task_streaming_log_url": None, "error": None},
                {
                    "task_id": body["task_id"],
                    "droplet_sha1": sha1 if starts else None,
                    "detected_buildpack": "python",
                },
            ]

        self.agent.stage = stage

    def stages_badly(self, *replies: dict[str, Any]) -> None:
        async def stage(body: dict[str, Any]) -> list[dict[str, Any]]:
            return [{"task_id": body["task_id"], **reply} for reply in replies]

        self.agent.stage = stage

    async def pushed(self, name: str, **changes: Any) -> dict[str, Any]:
        """Pushes an app: the fake agent stages it and starts index 0."""
        self.stages_well()
        events = await self.events(await self.claimed(name, **changes))
        assert [event["event"] for event in events] == ["task", "set_up", "staged"], events
        row = await self.call("GET", f"/v1/apps/{name}")
        assert isinstance(row, dict)
        return row

    def everything(self) -> dict[str, Any]:
        """Everything that a push can change: the wanted apps, and the files."""
        state = self.controller.files
        kept = {path.name: path.read_bytes() for path in files_of(state)}
        return {"apps": (state / "apps.json").read_bytes(), **kept}

    async def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 10
        while not true():
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.02)

    def starts(self) -> list[dict[str, Any]]:
        return [body for subject, body in self.agent.heard if subject == "dea.host1.start"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    nats, port = await children.start_nats(tmp_path, 0, PASSWORD)
    servers = (f"nats://garrison:{PASSWORD}@127.0.0.1:{port}",)
    base: list[str] = []
    controller = Controller(state_dir=tmp_path, servers=servers, base_uri=lambda: base[0], log=LOG)
    gateway = Gateway(servers=servers, host="127.0.0.1", port=0, log=LOG)
    front = await gateway.listen()
    facts = ControllerInfo("0", gateway.port, tmp_path / "agent.sock")
    runner = web.AppRunner(Api(controller, lambda: facts, PASSWORD).application(), shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
    agent = FakeAgent(servers)
    made = World(agent, controller, gateway, base[0])
    tasks = [asyncio.create_task(part.run()) for part in (controller, gateway, agent)]
    try:
        await made.until(lambda: bool(controller.hosts.hosts and controller.stagers.hosts), "no advert")
        yield made
    finally:
        await made.http.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
        front.close()
        await children.stop(nats, 5)
