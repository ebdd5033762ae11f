"""Servers for the tests of the bus: the bundled nats-server, which can be killed and stalled, and fake ones on raw sockets.

There is also a plain peer (a raw socket too), and a `Bus` whose commands, connects and log lines are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from agent.bus import commands as c
from agent.bus import messages as m
from agent.bus.connection import Bus
from agent.config import NatsSettings
from agent.dev import children

WITHIN_S = 20.0


async def until(true: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> None:
    """Polls until ``true`` is true; what it checks has no event."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not true():
                await asyncio.sleep(0.01)
            return
    raise AssertionError(f"{what}: not within {within_s} s")


class NatsServer:
    """A real nats-server on 127.0.0.1. The first start takes a free port; later starts take the same one."""

    def __init__(self, state_dir: Path, config: str = "") -> None:
        self._dir = state_dir
        self._config = config
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    async def start(self, config: str | None = None) -> None:
        if config is not None:
            self._config = config
        ports_dir = self._dir / "ports"
        ports_dir.mkdir(parents=True, exist_ok=True)
        for old in ports_dir.iterdir():
            old.unlink()
        path = self._dir / "nats.conf"
        path.write_text(
            f'listen: "127.0.0.1:{self._port or -1}"\nports_file_dir: "{ports_dir}"\n{self._config}\n'
        )
        with (self._dir / "nats.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(children.nats_server_binary()), "-c", str(path), stdout=log, stderr=log
            )
        found: list[str] = []

        def told() -> bool:
            assert self._process is not None
            assert self._process.returncode is None, (self._dir / "nats.log").read_text()
            with contextlib.suppress(ValueError, LookupError):  # half written
                found[:] = [json.loads(one.read_text())["nats"][0] for one in ports_dir.glob("*.ports")]
            return bool(found)

        await until(told, "nats-server tells its port")
        self._port = int(found[0].rpartition(":")[2])

    async def kill(self) -> None:
        """Kills it, so that it cannot send anything to its clients first."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    def stall(self) -> None:
        """Stops the process: it stays connected and does not reply."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # kill(2) returns before the other threads have stopped, and one of them may still answer; this waits for all
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()


Talk = Callable[["FakeServer", asyncio.StreamWriter], Awaitable[None]]


class FakeServer:
    """Speaks just enough to be connected to; ``talk`` has the socket after each PONG, ``before_pong`` before it.
    ``heard``: every line of every client."""

    def __init__(self, talk: Talk | None = None, before_pong: Talk | None = None) -> None:
        self._talk = talk
        self._before_pong = before_pong
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.connections = 0
        self.heard: list[bytes] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        if self._talk is None:
            return  # accepted, and not a word
        info = {"server_id": "fake", "version": "2.10.0", "max_payload": 1 << 20, "headers": True, "proto": 1}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.heard.append(line)
                if line == b"PING\r\n":
                    if self._before_pong is not None:
                        await self._before_pong(self, writer)
                    writer.write(b"PONG\r\n")
                    await self._talk(self, writer)

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


class Refusing:
    """Says why not (or nothing), and resets the connection: at once behind its INFO, or as an answer to what it is told."""

    def __init__(self, why: bytes, *, at_once: bool) -> None:
        self._why, self._at_once = why, at_once
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id": "fake", "version": "2.10.0", "max_payload": 1024, "proto": 1}\r\n')
        if not self._at_once:
            await reader.readuntil(b"\r\n")
        if self._why:
            writer.write(b"-ERR '" + self._why + b"'\r\n")
        never_lingers = struct.pack("ii", 1, 0)  # close sends a reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, never_lingers)
        writer.transport.abort()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


class Relay:
    """Between a host and its server. ``is_open``: connections are taken (a test's own listeners are there now).
    ``answers``: what the server says comes through; ``hears``: what the host says does. ``passes``: while it is not set,
    answers wait here; it is unset as soon as ``hold_at`` goes by, before the server has it."""

    def __init__(self, port: Callable[[], int]) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._copying: set[asyncio.Task[None]] = set()
        self.is_open = True
        self.answers = True
        self.hears = True
        self.passes = asyncio.Event()
        self.passes.set()
        self.hold_at = b""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        with contextlib.suppress(ConnectionError):
            if self.is_open:
                there, back = await asyncio.open_connection("127.0.0.1", self._port())
                ends.append(back)
                ways = {
                    asyncio.create_task(self._copy(reader, back, lambda: self.hears)),
                    asyncio.create_task(self._copy(there, writer, lambda: self.answers, self.passes)),
                }
                self._copying |= ways
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.transport.abort()

    async def _copy(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_through: Callable[[], bool],
        passes: asyncio.Event | None = None,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if passes is not None:
                    await passes.wait()
                elif self.hold_at and self.hold_at in data:
                    self.passes.clear()
                if is_through():
                    writer.write(data)
                    await writer.drain()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._copying:
            task.cancel()
        await asyncio.gather(*self._copying, return_exceptions=True)


class Peer:
    """A raw connection that keeps the messages of its subscriptions in order: (subject, reply, payload)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.heard: list[tuple[str, str, bytes]] = []
        self._pongs = 0
        self._task = asyncio.create_task(self._listen(), name="peer")

    @classmethod
    async def open(cls, server: NatsServer, *subjects: str, login: dict[str, str] | None = None) -> Peer:
        peer = cls(*await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 24))
        hello = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, **(login or {})}
        peer.writer.write(b"CONNECT " + json.dumps(hello).encode() + b"\r\n")
        for number, subject in enumerate(subjects, 1):
            peer.writer.write(f"SUB {subject} {number}\r\n".encode())
        await peer.flush()
        return peer

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await self._reader.readline():
                word, *rest = line.decode(errors="replace").split()
                if word == "MSG":
                    subject, _, *reply, size = rest
                    payload = (await self._reader.readexactly(int(size) + 2))[:-2]
                    self.heard.append((subject, "".join(reply), payload))
                elif word == "PING":
                    self.writer.write(b"PONG\r\n")
                elif word == "PONG":
                    self._pongs += 1

    async def flush(self) -> None:
        wanted = self._pongs + 1
        self.writer.write(b"PING\r\n")
        await until(lambda: self._pongs >= wanted or self._task.done(), "the server answers the peer")
        assert self._pongs >= wanted, "the server ended the peer's connection"

    async def say(self, subject: str, payload: bytes, reply: str = "") -> None:
        self.writer.write(put(subject.encode(), payload, reply.encode()))
        await self.flush()

    async def ended(self) -> None:
        """Waits until the server has closed the connection and everything that it sent before is read."""
        async with asyncio.timeout(WITHIN_S):
            await asyncio.wait({self._task})

    def on(self, subject: str) -> list[bytes]:
        return [payload for where, _, payload in self.heard if where == subject]

    async def close(self) -> None:
        self._task.cancel()
        self.writer.close()
        await asyncio.gather(self._task, return_exceptions=True)


def put(subject: bytes, payload: bytes, reply: bytes = b"") -> bytes:
    """A message as bytes of the NATS protocol."""
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)


class Host:
    """A running `Bus`, and what it did: commands that it handed over, connects, log lines."""

    def __init__(self, servers: list[str], outbox_dir: Path, **more: Any) -> None:
        self.commands: list[c.Command] = []
        self.connects = 0
        self.lines: list[dict[str, Any]] = []
        self.at_connect: Callable[[], None] = lambda: None
        self.apply: Callable[[c.Command], None] = self.commands.append
        settings = NatsSettings(servers=tuple(servers), **more.pop("settings", {}))
        self.bus = Bus(
            settings,
            agent_id="host1",
            outbox_dir=outbox_dir,
            staging=True,
            log=structlog.wrap_logger(
                None, processors=[self._note], wrapper_class=structlog.make_filtering_bound_logger(0)
            ),
            **more,
        )
        self._task: asyncio.Task[None] | None = None

    def _note(self, _: Any, level: str, event: Any) -> Any:
        self.lines.append({**event, "level": level})
        raise structlog.DropEvent

    def _on_connected(self) -> None:
        self.connects += 1
        self.at_connect()

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def run(self) -> None:
        running = self.bus.run(lambda command: self.apply(command), self._on_connected)
        self._task = asyncio.create_task(running, name="bus")

    async def run_until_connected(self) -> None:
        self.run()
        await until(lambda: self.bus.connected, "connected")

    async def stop(self) -> None:
        """Ends the bus as a killed process does, without a farewell."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None


@contextlib.asynccontextmanager
async def nats_server(state_dir: Path, config: str = "") -> AsyncIterator[NatsServer]:
    server = NatsServer(state_dir, config)
    try:
        await server.start()
        yield server
    finally:
        await server.close()


def exited(number: int) -> m.DropletExited:
    return m.DropletExited("default", f"app-{number}", "v", f"i{number}", number, "CRASHED", 1, "out", 7)


def route(kind: type[Any], port: int = 61001, *uris: str, owner: str = "p1") -> Any:
    return kind("host1", "app", uris or ("a.example.com",), "10.0.0.1", port, {"component": "dea-0"}, owner)


def first_reply(number: int) -> m.StagingReply1:
    """A first staging reply. Its receiver counts: the first message in the inbox is the first reply, the next one the second."""
    return m.StagingReply1(f"task-{number}")


def second_reply(number: int, *, failed: bool) -> m.StagingReply2:
    sha1 = None if failed else "5b1d"
    error = "Error staging: out of luck" if failed else msgspec.UNSET
    return m.StagingReply2(f"task-{number}", "app", droplet_sha1=sha1, error=error)


def staged(number: int) -> m.StagingRefused:
    """An event that needs no listener."""
    return m.StagingRefused(f"task-{number}", "x" * 200)


def kept_files(tmp_path: Path) -> list[str]:
    """The files of the outbox; none if no agent has made the directory yet."""
    return sorted(path.name for path in (tmp_path / "outbox").glob("*"))
