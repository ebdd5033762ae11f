"""Drives a whole agent from outside: a real nats-server, a real agent process, a blob store, a peer on the bus.

    async with open_host(base_dir, listener, {}) as host:
        await host.start_agent()
        app = host.make_app("shop")
        await host.start(app)
        await host.wait_state(app, "RUNNING")

The test process is in a test host (conftest.py), and so are its children: bus, files and apps are reached over its loopback and its
own address. At the end the agent gets TERM and must leave by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import testhost
from driver_apps import Droplet, make_droplet
from driver_files import FileServer
from driver_peer import Peer, Said, Word
from driver_process import AgentProcess
from driver_process import poll as poll  # tests take it from here

from agent.dev import children

Argv = tuple[str, ...]
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
FIXTURE_APP = "7c0a4c0e-2f5d-4b0a-9a1e-3f8f3c5f9b21"
LOCAL_IP = "192.0.2.1"  # the test host's, see testhost.enter
STACK = "debian"


def stack_dir() -> Path:
    cache = os.environ.get("GARRISON_CACHE") or Path.home() / ".cache" / "garrison"
    return Path(cache) / "stacks" / STACK


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text())


def set_path(body: Any, dotted: str, value: Any) -> None:
    """Sets the field that ``dotted`` names; `limits.mem` is a field of a field."""
    *path, last = dotted.split(".")
    for part in path:
        body = body[part]
    body[last] = value


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merges sections key by key, and replaces everything else."""
    found = {**base}
    for key, value in changes.items():
        old = found.get(key)
        found[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return found


@dataclass(frozen=True, slots=True)
class App:
    """An app as a controller knows it. ``path``: where its droplet is served."""

    name: str
    id: str
    versions: tuple[str, str]
    uris: tuple[str, ...]
    droplet: Droplet
    path: str

    @property
    def v1(self) -> str:
        return self.versions[0]

    @property
    def v2(self) -> str:
        return self.versions[1]


@dataclass
class Host:
    """The agent and its peers (see the module's example). Made by `open_host`."""

    dir: Path
    listener: bytes
    settings: dict[str, Any]
    bus_port: int
    peer: Peer
    files: FileServer
    agent: AgentProcess | None = None
    dea: str = ""
    _questions: int = 0
    _apps: list[App] = field(default_factory=list)

    # -- the agent ---------------------------------------------------------------------------------------------

    @property
    def base_dir(self) -> Path:
        return Path(self.settings["base_dir"])

    @property
    def memory_path(self) -> Path:
        return self.base_dir / "db" / "agent.json"

    @property
    def hold_flag(self) -> Path:
        """A file that exists while a held agent waits. Removing it lets the start go on."""
        return self.dir / "held"

    @property
    def running(self) -> AgentProcess:
        assert self.agent is not None, "the agent has not been started"
        return self.agent

    async def start_agent(self, *, hold: str = "", tree: Path | None = None, by: Argv = ()) -> AgentProcess:
        """Until it has advertised itself; its id is then known. ``hold``: a phase of held_agent.py; ``tree``: the sources of
        another release; ``by``: a program that runs it, in place of this Python and the agent's command line."""
        since = self.peer.mark
        agent = await self._spawn_agent(hold, tree, by)
        advert = await self._first_advert(since)
        self.dea = advert.body["id"]
        await agent.wait_log("agent_started")
        return agent

    async def _spawn_agent(self, hold: str, tree: Path | None = None, by: Argv = ()) -> AgentProcess:
        config = self.dir / "config.yml"
        config.write_text(json.dumps(self.settings))
        argv = by or (sys.executable, "-m", "agent")
        if hold:
            argv = (sys.executable, str(Path(__file__).with_name("held_agent.py")), hold, str(self.hold_flag))
        with (self.dir / "agent.out").open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *argv, "run", "--config", str(config), stdout=out, stderr=out, cwd=tree
            )
        self.agent = AgentProcess(process, Path(self.settings["logging"]["file"]))
        return self.agent

    async def _first_advert(self, since: int) -> Said:
        advert = asyncio.ensure_future(self.peer.wait_for("dea.advertise", since=since, within_s=30))
        exited = asyncio.ensure_future(self.running._process.wait())
        try:
            await asyncio.wait({advert, exited}, return_when=asyncio.FIRST_COMPLETED)
            if advert.done():
                return advert.result()
            said = (self.dir / "agent.out").read_text(errors="replace")
            raise AssertionError(f"the agent ended at once:\n{said}\n{self.running.log_text()}")
        finally:
            for task in (advert, exited):
                task.cancel()
            await asyncio.gather(advert, exited, return_exceptions=True)

    async def stop_agent(self, number: signal.Signals = signal.SIGTERM, within_s: float = 40.0) -> int:
        """Sends a signal and waits for the end. Returns the exit status."""
        self.running.signal(number)
        return await self.running.wait_exited(within_s)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.base_dir / "agent.sock")))

    async def control(self, method: str, path: str) -> Any:
        """Sends a request to the control socket."""
        async with self._session() as session:
            async with session.request(method, f"http://agent{path}") as answer:
                return await answer.json()

    async def control_lines(self, path: str) -> list[dict[str, Any]]:
        """Yields the JSON lines of a stream of the control socket until it ends."""
        async with self._session() as session:
            async with session.get(f"http://agent{path}") as answer:
                assert answer.status == 200, await answer.text()
                return [json.loads(line) async for line in answer.content]

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = await self.control("GET", "/v1/status")
        return found

    # -- apps --------------------------------------------------------------------------------------------------

    def make_app(
        self, name: str, *, uris: tuple[str, ...] | None = None, droplet: Droplet | None = None
    ) -> App:
        """Makes an app with an id, two versions, a route and a droplet that the blob store serves."""
        app_id = str(uuid.uuid4())
        app = App(
            name,
            app_id,
            (str(uuid.uuid4()), str(uuid.uuid4())),
            (f"{name.lower()}.example.com",) if uris is None else uris,
            droplet or make_droplet(self.listener, app_id),
            f"/droplets/{app_id}",
        )
        self.files.put(app.path, app.droplet.data)
        self._apps.append(app)
        return app

    def start_message(self, app: App, index: int = 0, **changes: Any) -> dict[str, Any]:
        """A start message as the Cloud Controller sends it. ``changes`` replace fields (`limits={"mem": 16}` only that one)."""
        return merged(self.of_app(fixture("dea.start.json"), app), {"index": index, **changes})

    def of_app(self, body: dict[str, Any], app: App) -> dict[str, Any]:
        """``body``, a start message of the fixtures, changed to start ``app`` on this host."""
        body = json.loads(json.dumps(body).replace(FIXTURE_APP, app.id))
        uris = list(app.uris)
        body |= {
            "droplet": app.id,
            "name": app.name,
            "version": app.v1,
            "stack": STACK,
            "uris": uris,
            "sha1": app.droplet.sha1,
            "executableUri": self.files.url(app.path),
        }
        body["vcap_application"] |= {"application_name": app.name, "application_uris": uris, "uris": uris}
        return body

    def staging_message(self, app: App, **changes: Any) -> dict[str, Any]:
        """A staging request as the Cloud Controller sends it, without admin buildpacks. The test must serve the package."""
        body = json.loads(json.dumps(fixture("staging.start.json")).replace(FIXTURE_APP, app.id))
        start = self.of_app(body["start_message"], app) | {"sha1": None}
        addresses = {
            "download_uri": self.files.url(f"/packages/{app.id}"),
            "upload_uri": self.files.url(f"{app.path}/upload"),
            "buildpack_cache_download_uri": self.files.url(f"/caches/{app.id}"),
            "buildpack_cache_upload_uri": self.files.url(f"/caches/{app.id}/upload"),
        }
        own = {"stack": STACK, "start_message": start, "admin_buildpacks": []}
        return merged(body, {**addresses, **own, **changes})

    async def start(self, app: App, index: int = 0, **changes: Any) -> None:
        await self.peer.burst([self.start_word(app, index, **changes)])

    def start_word(self, app: App, index: int = 0, **changes: Any) -> Word:
        return Word.of(f"dea.{self.dea}.start", self.start_message(app, index, **changes))

    async def stop(self, app: App, **filters: Any) -> None:
        await self.peer.say("dea.stop", {"droplet": app.id, **filters})

    async def run(self, app: App, index: int = 0, **changes: Any) -> dict[str, Any]:
        """Starts the app and waits until it runs. Returns the reply of find.droplet."""
        await self.start(app, index, **changes)
        return await self.wait_state(app, "RUNNING", index=index)

    # -- asking ------------------------------------------------------------------------------------------------

    async def find(self, app: App, **filters: Any) -> list[dict[str, Any]]:
        """All replies to one find request. Half a second without any reply is taken to mean that there is none."""
        self._questions += 1
        inbox = f"question.{self._questions}"
        since = self.peer.mark
        await self.peer.say("dea.find.droplet", {"droplet": app.id, **filters}, inbox)
        await self.peer.until(lambda: self.peer.on(inbox, since), 0.5)
        # All answers of an agent are written in one turn: what is not there now does not come.
        await self.peer.flush()
        return [one.body for one in self.peer.on(inbox, since)]

    async def wait_state(
        self, app: App, state: str, *, index: int | None = None, within_s: float = 30.0, **filters: Any
    ) -> dict[str, Any]:
        """Waits until a reply to find.droplet has this state. Returns the reply."""
        deadline = time.monotonic() + within_s
        while True:
            found = await self.find(app, include_stats=True, **filters)
            for one in found:
                if one["state"] == state and index in (None, one["index"]):
                    return one
            if time.monotonic() > deadline:
                told = [(one["index"], one["state"]) for one in found]
                raise AssertionError(
                    f"{app.name}: no {state} within {within_s} s but {told}:\n{self.running.log_text()}"
                )
            await asyncio.sleep(0.05)

    async def wait_gone(self, app: App, within_s: float = 30.0) -> None:
        """Waits until no instance of the app replies."""
        deadline = time.monotonic() + within_s
        while found := await self.find(app):
            assert time.monotonic() < deadline, (
                f"{app.name}: still {found} after {within_s} s:\n{self.running.log_text()}"
            )

    async def logs_of(self, instance: str) -> str:
        """The output of an instance so far, from the control socket."""
        async with self._session() as session:
            async with session.get(f"http://agent/v1/instances/{instance}/logs") as answer:
                lines = [json.loads(line) for line in (await answer.text()).splitlines()]
        return "".join(line.get("data", "") for line in lines)

    async def ask_app(self, port: int, line: str = "GET / HTTP/1.0") -> str:
        """Sends one line to an app's published port. Returns the answer up to the end of the connection ("" if it just ends)."""
        reader, writer = await asyncio.open_connection(LOCAL_IP, port)
        try:
            writer.write(line.encode() + b"\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                return (await asyncio.wait_for(reader.read(), 10)).decode()
            return ""
        finally:
            writer.close()

    async def environment_of(self, port: int) -> dict[str, str]:
        """The environment of the app's process."""
        _, _, text = (await self.ask_app(port)).partition("\r\n\r\n")
        return dict(line.partition("=")[::2] for line in text.splitlines())

    async def wait_remembered(self, text: str, within_s: float = 20.0) -> None:
        """Waits until the agent's memory on disk has it, so that a next agent would know it."""
        await poll(lambda: text in self.memory(), within_s)
        assert text in self.memory(), self.memory()

    def memory(self) -> str:
        """The agent's memory, as it is on disk."""
        text = ""
        for path in (self.base_dir / "db").rglob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                text += path.read_text() + "\n"
        return text

    # -- what is left ------------------------------------------------------------------------------------------

    def picture(self) -> testhost.Picture:
        return testhost.take_picture()

    def containers(self) -> list[str]:
        """The handles in the depot."""
        depot = self.base_dir / "depot"
        return [path.name for path in depot.iterdir()] if depot.exists() else []

    def pid_of_container(self, handle: str) -> int:
        """The pid of the container's pid 1, from the depot's record."""
        record = json.loads((self.base_dir / "depot" / handle / "snapshot.json").read_text())
        return int(record["pid"])

    async def wait_depot_empty(self, within_s: float = 20.0) -> None:
        await poll(lambda: not self.containers(), within_s)
        assert not self.containers(), self.running.log_text()

    async def left_since(self, before: testhost.Picture, within_s: float = 15.0) -> list[str]:
        """What differs from before, the depot's containers included. Waits until nothing does, and then returns an empty list."""

        def differences() -> list[str]:
            return [f"depot: {handle}" for handle in self.containers()] + testhost.wait_same(before, 0)

        deadline = time.monotonic() + within_s
        while (left := differences()) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return left


DEFAULTS: Mapping[str, Any] = {
    "index": 0,
    "local_ip": LOCAL_IP,
    "intervals": {"heartbeat": 3, "advertise": 1, "router_register_in_seconds": 20, "stats": 1},
    "resources": {"memory_mb": 4096, "disk_mb": 16384, "low_water_mb": 64},
    "instance": {"stop_grace_s": 2},
    "staging": {"memory_limit_mb": 256, "disk_limit_mb": 512, "max_staging_duration": 60},
}


@contextlib.asynccontextmanager
async def open_host(base_dir: Path, listener: bytes, settings: Mapping[str, Any]) -> AsyncIterator[Host]:
    """Starts bus, blob store and peer; the test starts the agent. ``settings`` override `DEFAULTS`."""
    async with contextlib.AsyncExitStack() as undo:
        password = "p"
        server, port = await children.start_nats(base_dir, 0, password)
        undo.push_async_callback(children.stop, server, 5)
        files = FileServer()
        await files.open()
        undo.push_async_callback(files.close)
        peer = await Peer.open(port, "garrison", password)
        undo.push_async_callback(peer.close)
        given = {
            "base_dir": str(base_dir / "agent"),
            "cgroup_parent": f"garrison-test-{os.getpid()}",
            "nats": {"servers": [f"nats://garrison:{password}@127.0.0.1:{port}"]},
            "stacks": [{"name": STACK, "package_path": str(stack_dir())}],
            "logging": {"level": "debug", "format": "json", "file": str(base_dir / "agent.log")},
        }
        everything = merged(merged(copy.deepcopy(dict(DEFAULTS)), given), settings)
        host = Host(base_dir, listener, everything, port, peer, files)
        undo.push_async_callback(_end, host)
        yield host


async def _end(host: Host) -> None:
    """Ends the agent by TERM, as in production, after releasing what it holds."""
    host.hold_flag.unlink(missing_ok=True)
    if host.agent is not None and host.agent.is_running:
        status = await host.stop_agent()
        assert status == 0, f"the agent ended with {status}:\n{host.agent.log_text()}"
