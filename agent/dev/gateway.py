"""The development gateway: forwards HTTP requests by their host name to the endpoints that `router.register` has named.

It reads the head of one request, chooses an endpoint, and then copies bytes in both directions, so that bodies, streams and
websockets pass unchanged. A connection serves one request (`Connection: close`), since the next one could be for another app. The
rules of routes are those of gorouter (docs/protocol.md, "Routes"): strict types, case-insensitive hosts, `host/path` uris. A
route that is not registered again for 120 s is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.bus.client import PeerClient

PRUNE_AFTER_S = 120.0
PRUNE_PERIOD_S = 5.0
MINIMUM_REGISTER_INTERVAL_S = 5
HEAD_LIMIT_BYTES = 64 << 10
HEAD_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
ATTEMPTS = 3


class RouteMessage(msgspec.Struct, frozen=True):
    """`router.register` and `router.unregister`. A message with a value of a wrong type is dropped."""

    host: str
    port: int
    uris: tuple[str, ...] | None = None
    app: str | None = None
    private_instance_id: str | None = None
    private_instance_index: str | None = None
    tags: Mapping[str, str] | None = None
    stale_threshold_in_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str
    port: int
    app: str
    instance: str
    expires_at: float


class Routes:
    """The endpoints of each uri, by host and port. No I/O; the time is an argument."""

    def __init__(self) -> None:
        self._routes: dict[str, dict[tuple[str, int], Endpoint]] = {}
        self._turn = itertools.count()

    def register(self, message: RouteMessage, now: float) -> None:
        keep_s = min(PRUNE_AFTER_S, message.stale_threshold_in_seconds or PRUNE_AFTER_S)
        endpoint = Endpoint(
            message.host, message.port, message.app or "", message.private_instance_id or "", now + keep_s
        )
        for uri in message.uris or ():
            self._routes.setdefault(uri.lower(), {})[message.host, message.port] = endpoint

    def unregister(self, message: RouteMessage) -> None:
        for uri in message.uris or ():
            endpoints = self._routes.get(uri.lower(), {})
            endpoints.pop((message.host, message.port), None)
            if not endpoints:
                self._routes.pop(uri.lower(), None)

    def prune(self, now: float) -> None:
        for uri in list(self._routes):
            kept = {key: e for key, e in self._routes[uri].items() if e.expires_at > now}
            if kept:
                self._routes[uri] = kept
            else:
                del self._routes[uri]

    def find(self, host: str, path: str) -> list[Endpoint]:
        """The endpoints of the longest uri that matches. Each call begins with another endpoint."""
        base = host.lower().split(":")[0]
        segments = [s for s in path.lower().split("?")[0].split("/") if s]
        for length in range(len(segments), -1, -1):
            endpoints = self._routes.get("/".join([base, *segments[:length]]))
            if endpoints:
                ordered = list(endpoints.values())
                turn = next(self._turn) % len(ordered)
                return ordered[turn:] + ordered[:turn]
        return []

    def uris(self) -> list[str]:
        return sorted(self._routes)


class Gateway:
    def __init__(self, *, servers: tuple[str, ...], host: str, port: int, log: Any) -> None:
        self.routes = Routes()
        self.port = port
        self._host = host
        self._log = log
        self._id = f"0-{uuid.uuid4()}"
        self._greetings: asyncio.Queue[str] = asyncio.Queue()
        self.bus = PeerClient(
            servers,
            name="garrison-dev-gateway",
            on_connected=lambda: self._greetings.put_nowait("router.start"),
            log=log,
        )
        self.bus.subscribe("router.register", self._on_register)
        self.bus.subscribe("router.unregister", self._on_unregister)
        self.bus.subscribe("router.greet", lambda _subject, reply, _data: self._greet(reply))

    def _on_register(self, _subject: str, _reply: str, data: bytes) -> None:
        self.routes.register(msgspec.json.decode(data, type=RouteMessage), time.monotonic())

    def _on_unregister(self, _subject: str, _reply: str, data: bytes) -> None:
        self.routes.unregister(msgspec.json.decode(data, type=RouteMessage))

    def _greet(self, reply: str) -> None:
        if reply:
            self._greetings.put_nowait(reply)

    async def listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, self._host, self.port, limit=HEAD_LIMIT_BYTES)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def run(self) -> None:
        """Receives and publishes messages, and removes old routes, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.bus.run(), name="gateway-bus")
            group.create_task(self._greet_for_ever(), name="gateway-greet")
            group.create_task(self._prune_for_ever(), name="gateway-prune")

    async def _greet_for_ever(self) -> None:
        greeting = msgspec.json.encode(
            {
                "id": self._id,
                "hosts": [self._host],
                "minimumRegisterIntervalInSeconds": MINIMUM_REGISTER_INTERVAL_S,
                "pruneThresholdInSeconds": int(PRUNE_AFTER_S),
            }
        )
        while True:
            subject = await self._greetings.get()
            try:
                await self.bus.publish(subject, greeting)
            except ConnectionError as error:
                self._log.warning("gateway_greeting_lost", error=str(error))

    async def _prune_for_ever(self) -> None:
        while True:
            await asyncio.sleep(PRUNE_PERIOD_S)
            if self.bus.connected:  # without a bus the routes are kept, as in gorouter
                self.routes.prune(time.monotonic())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one_request(reader, writer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self._log.debug("gateway_connection_ended", error=repr(error))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            writer.write(
                _refusal(431, "Request Header Fields Too Large", "", "the request's head is too large")
            )
            return
        request = parse_head(head)
        if request is None:
            writer.write(_refusal(400, "Bad Request", "", "expected an HTTP/1 request with one Host"))
            return
        endpoints = self.routes.find(request.host, request.path)
        if not endpoints:
            text = f"no app has the route {request.host}"
            if is_loopback_name(request.host):
                text += f"\nroutes: {', '.join(self.routes.uris()) or 'none yet'}"
            writer.write(_refusal(404, "Not Found", "unknown_route", text))
            return
        peer = writer.get_extra_info("peername")
        for endpoint in endpoints[:ATTEMPTS]:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    back = await asyncio.open_connection(endpoint.host, endpoint.port)
            except (OSError, TimeoutError) as error:
                self._log.info("endpoint_failed", host=endpoint.host, port=endpoint.port, error=repr(error))
                continue
            back[1].write(request.forwarded(endpoint, peer[0] if peer else ""))
            await _both_ways((reader, writer), back)
            return
        writer.write(
            _refusal(502, "Bad Gateway", "endpoint_failure", "the app's instances refuse connections")
        )


@dataclass(frozen=True, slots=True)
class Request:
    line: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    host: str
    path: str

    def forwarded(self, endpoint: Endpoint, client: str) -> bytes:
        upgrade = (b"upgrade", b"websocket") in {
            (name.lower(), value.lower()) for name, value in self.headers
        }
        replaced = {b"keep-alive", b"x-cf-applicationid", b"x-cf-instanceid"}
        if not upgrade:
            replaced |= {b"connection", b"upgrade"}
        lines = [self.line]
        forwarded_for = [client]
        for name, value in self.headers:
            if name.lower() == b"x-forwarded-for":
                forwarded_for.insert(0, value.decode("latin-1"))
            elif name.lower() not in replaced:
                lines.append(name + b": " + value)
        if not upgrade:
            lines.append(b"Connection: close")
        lines.append(f"X-Forwarded-For: {', '.join(forwarded_for)}".encode("latin-1"))
        if not any(name.lower() == b"x-forwarded-proto" for name, _ in self.headers):
            lines.append(b"X-Forwarded-Proto: http")
        lines.append(f"X-Cf-Applicationid: {endpoint.app}".encode())
        lines.append(f"X-Cf-Instanceid: {endpoint.instance}".encode())
        return b"\r\n".join(lines) + b"\r\n\r\n"


def parse_head(head: bytes) -> Request | None:
    """None: it is not an HTTP/1 request with exactly one Host."""
    line, *rest = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
        return None
    headers = []
    for row in rest:
        name, colon, value = row.partition(b":")
        if not colon or not name or name != name.strip():
            return None
        headers.append((name, value.strip()))
    hosts = [value for name, value in headers if name.lower() == b"host"]
    if len(hosts) != 1:
        return None
    return Request(line, tuple(headers), hosts[0].decode("latin-1"), parts[1].decode("latin-1"))


def is_loopback_name(host: str) -> bool:
    """True if only programs on this machine use this name. A web page can make its own name resolve to this machine (DNS
    rebinding), and requests through a proxy or a tunnel have the proxy's name.
    """
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) and not host.endswith("]") else host
    name = name.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _both_ways(front: Streams, back: Streams) -> None:
    """Copies bytes until the app closes its side. When the client ends its sending, the app is sent the same end."""
    to_app = asyncio.create_task(_move(front[0], back[1]), name="gateway-to-app")
    try:
        await _move(back[0], front[1])
    finally:
        to_app.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await to_app
        back[1].close()
        with contextlib.suppress(OSError):
            await back[1].wait_closed()


async def _move(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(1 << 16):
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


def _refusal(status: int, reason: str, router_error: str, text: str) -> bytes:
    body = f"{status} {reason}: {text}\n".encode()
    extra = f"X-Cf-RouterError: {router_error}\r\n" if router_error else ""
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n{extra}Connection: close\r\n\r\n"
    ).encode() + body
