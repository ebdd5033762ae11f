"""`garrison up`: bus, agent, controller and gateway on one machine, started in order and stopped in reverse.

The agent is a child process with its own config file below the state directory. It cannot distinguish these peers from a real
Cloud Controller and gorouter. While `up` runs, `up.json` (mode 0600) has the addresses and the password for the other commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import structlog
import yaml
from aiohttp import web

from agent.dev import children, host
from agent.dev.api import USER, Api, ControllerInfo
from agent.dev.controller import Controller
from agent.dev.gateway import Gateway
from wsh.stacks import MANIFEST, is_built

AGENT_READY_S = 30.0
AGENT_STOP_S = 40.0  # the agent's own deadline is 30
RESTARTS_IN_A_ROW = 3
RESTART_PAUSE_S = 1.0


class Progress(Protocol):
    """Receives the progress of `up` and shows it to the user; implemented by the command."""

    def headline(self, text: str) -> None: ...
    def done(self, what: str, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def working(self, what: str, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    state_dir: Path
    stacks_dir: Path
    gateway_port: int = 8080
    bus_port: int = 4222
    pool_network: str | None = None
    publish_ports: bool = False
    """Other hosts can reach the apps too, without the gateway."""


class UpFailed(Exception):
    """`garrison up` cannot start or has ended by an error; the message says why and what to do."""


async def run(options: Options, progress: Progress) -> None:
    """Runs until TERM or Ctrl-C. UpFailed: an error; everything is stopped by then."""
    began = time.monotonic()
    _check_host()
    state = options.state_dir
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    state.chmod(0o700)
    log = _open_log(state / "dev.log")
    stopping = asyncio.Event()
    with contextlib.ExitStack() as undo:
        undo.enter_context(_only_one(state))
        undo.enter_context(_signals(stopping, progress))
        progress.headline(
            f"garrison {version('garrison')}  nats-server {children.nats_server_version()} (bundled)"
            f"  state in {_short(state)}"
        )
        progress.done("host", ", ".join(f.text for f in host.findings() if f.text != "root"))
        progress.done("stack", await _ensure_stack(options.stacks_dir, progress))
        if stopping.is_set():
            return
        try:
            await _serve(options, progress, log, stopping, began)
        except (children.ChildFailed, OSError) as error:
            raise UpFailed(str(error)) from error


async def _serve(
    options: Options, progress: Progress, log: Any, stopping: asyncio.Event, began: float
) -> None:
    state, password = options.state_dir, secrets.token_urlsafe(24)
    async with contextlib.AsyncExitStack() as undo:
        nats, bus_port = await children.start_nats(state, options.bus_port, password)
        undo.push_async_callback(children.stop, nats, 5)
        servers = (f"nats://{USER}:{password}@127.0.0.1:{bus_port}",)
        progress.done("bus", f"127.0.0.1:{bus_port}")

        gateway = Gateway(
            servers=servers, host="127.0.0.1", port=options.gateway_port, log=log.bind(part="gateway")
        )
        undo.push_async_callback(_close_server, await _listen(gateway))
        ports: dict[str, int] = {}
        controller = Controller(
            state_dir=state,
            servers=servers,
            base_uri=lambda: f"http://{USER}:{password}@127.0.0.1:{ports['api']}",
            log=log.bind(part="controller"),
        )
        socket = state / "agent" / "agent.sock"
        facts = ControllerInfo(version("garrison"), gateway.port, socket)
        ports["api"] = await undo.enter_async_context(_http(Api(controller, lambda: facts, password)))
        config = _write_config(options, servers)

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(controller.run(), name="controller"),
                group.create_task(gateway.run(), name="gateway"),
            ]
            (state / "agent.log").unlink(missing_ok=True)
            agent = Agent(config, state / "agent.log", progress, stopping)
            try:
                await agent.start()
                watch = group.create_task(agent.keep_running(), name="agent-watch")
                tasks.append(watch)
                host_id = await _first_advert(controller, agent, stopping)
                if host_id is not None:
                    advert = controller.hosts.hosts[host_id]
                    disk = f", {advert.disk_mb / 1024:.0f} GiB disk" if advert.disk_mb is not None else ""
                    progress.done(
                        "agent",
                        f"{host_id[:4]}…  {advert.memory_mb / 1024:.1f} GiB memory{disk} free for apps",
                    )
                    progress.done("gateway", f"http://*.localhost:{gateway.port}")
                    _write_up_file(state, ports["api"], password, gateway.port, socket)
                    undo.callback((state / "up.json").unlink, missing_ok=True)
                    progress.note(
                        f"Ready in {time.monotonic() - began:.1f} s. In another terminal: "
                        "garrison push examples/hello-flask      Ctrl-C stops everything."
                    )
                    await stopping.wait()
            finally:
                began_stop = time.monotonic()
                clean = await agent.stop()
                for task in tasks:
                    task.cancel()
            how = "nothing is left running" if clean else "the agent had to be killed: see agent.log"
            progress.note(f"Stopped in {time.monotonic() - began_stop:.1f} s: {how}.")
        if agent.failure is not None:
            raise children.ChildFailed(agent.failure)


class Agent:
    """The agent's process. It is started again when it ends although `up` has not stopped it."""

    def __init__(self, config: Path, log: Path, progress: Progress, stopping: asyncio.Event) -> None:
        self._config, self._log, self._progress, self._stopping = config, log, progress, stopping
        self._process: asyncio.subprocess.Process | None = None
        self.failure: str | None = None

    async def start(self) -> None:
        self._process = await children.start_agent(self._config, self._log)

    async def keep_running(self) -> None:
        quick_ends = 0
        while True:
            assert self._process is not None
            began = time.monotonic()
            status = await self._process.wait()
            if self._stopping.is_set():
                return
            quick_ends = quick_ends + 1 if time.monotonic() - began < 10 else 1
            if quick_ends >= RESTARTS_IN_A_ROW or (quick_ends == 1 and status == 2):
                self.failure = f"the agent ended with status {status}:\n{children.last_lines(self._log)}"
                self._stopping.set()
                return
            self._progress.note(f"The agent ended with status {status}; starting it again (see agent.log).")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESTART_PAUSE_S):
                    await self._stopping.wait()
                    return
            await self.start()

    async def stop(self) -> bool:
        return self._process is None or await children.stop(self._process, AGENT_STOP_S)


async def _first_advert(controller: Controller, agent: Agent, stopping: asyncio.Event) -> str | None:
    """Waits for the agent's host to be ready. None: it was not ready in time, or `up` is being stopped."""
    advert = asyncio.create_task(controller.wait_host(AGENT_READY_S), name="first-advert")
    stop = asyncio.create_task(stopping.wait(), name="first-advert-stop")
    try:
        await asyncio.wait((advert, stop), return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set():
            return None
        if (host_id := await advert) is None:
            agent.failure = f"the agent has sent no adverts for {AGENT_READY_S:.0f} s; see agent.log"
        return host_id
    finally:
        advert.cancel()
        stop.cancel()


async def _listen(gateway: Gateway) -> asyncio.Server:
    try:
        return await gateway.listen()
    except OSError as error:
        raise UpFailed(
            f"the gateway cannot listen on port {gateway.port}: {error.strerror or error}; "
            "choose another one with --gateway-port PORT (0: any free one)"
        ) from error


async def _close_server(server: asyncio.Server) -> None:
    server.close()


@contextlib.asynccontextmanager
async def _http(api: Api) -> AsyncIterator[int]:
    runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        assert runner.addresses
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def cgroup_parent(state_dir: Path) -> str:
    """The cgroup for this state directory's containers, so that two agents on one host do not use the same one."""
    return f"garrison-{hashlib.sha256(bytes(state_dir)).hexdigest()[:8]}"


def _write_config(options: Options, servers: tuple[str, ...]) -> Path:
    """Writes the agent's config: short intervals, since a user waits, and otherwise the defaults."""
    base_dir = options.state_dir / "agent"
    base_dir.mkdir(exist_ok=True, mode=0o700)
    settings: dict[str, Any] = {
        "base_dir": str(base_dir),
        "cgroup_parent": cgroup_parent(options.state_dir),
        "nats": {"servers": list(servers)},
        "stacks": [{"name": "debian", "package_path": str(options.stacks_dir / "debian")}],
        "domain": "localhost",
        "intervals": {"heartbeat": 2, "advertise": 2, "router_register_in_seconds": 5},
        "staging": {"enabled": True},
    }
    settings["network"] = {"publish_ports_to": "everybody" if options.publish_ports else "host"}
    if options.pool_network is not None:
        settings["network"]["pool_network"] = options.pool_network
    path = options.state_dir / "config.yml"
    _write_private(path, yaml.safe_dump(settings, sort_keys=False))
    return path


def _write_up_file(state: Path, api_port: int, password: str, gateway_port: int, socket: Path) -> None:
    facts = {
        "controller": f"http://127.0.0.1:{api_port}",
        "user": USER,
        "password": password,
        "gateway_port": gateway_port,
        "control_socket": str(socket),
        "pid": os.getpid(),
    }
    _write_private(state / "up.json", json.dumps(facts, indent=2) + "\n")


def _write_private(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


async def _ensure_stack(stacks_dir: Path, progress: Progress) -> str:
    import rootfs_builder

    stack = stacks_dir / "debian"
    if not is_built(stack):
        progress.working("stack", "building debian (about half a minute, once)")
        await asyncio.to_thread(
            rootfs_builder.build,
            "debian",
            stacks_dir,
            progress=lambda text: progress.working("stack", str(text)),
        )
    manifest = json.loads((stack / MANIFEST).read_text())
    size = manifest.get("bytes") or manifest.get("size_bytes")
    suite = manifest.get("suite", "bookworm")
    return f"debian ({suite}, {size >> 20} MiB)" if isinstance(size, int) else f"debian ({suite})"


def _check_host() -> None:
    problems = [finding.problem for finding in host.findings() if finding.problem]
    if problems:
        raise UpFailed("\n".join(problems))


@contextlib.contextmanager
def _only_one(state: Path) -> Any:
    with (state / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpFailed(f"garrison up runs already with its state in {_short(state)}") from None
        yield


@contextlib.contextmanager
def _signals(stopping: asyncio.Event, progress: Progress) -> Any:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        progress.note("Already stopping." if stopping.is_set() else "Stopping the apps…")
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _open_log(path: Path) -> Any:
    """The log of the controller and the gateway, which are not printed on the terminal."""
    file = path.open("wb")
    return structlog.wrap_logger(
        structlog.BytesLogger(file),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
    )


def _dumps(value: Any, **_options: Any) -> bytes:
    return json.dumps(value, default=repr).encode()


def _short(path: Path) -> str:
    home = str(Path.home())
    text = str(path)
    return "~" + text.removeprefix(home) if text.startswith(home + "/") else text
