"""The gateway's routes and heads, and bytes through it, without a bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import structlog

from agent.dev.gateway import Endpoint, Gateway, RouteMessage, Routes, is_loopback_name, parse_head

pytestmark = pytest.mark.unit


def route(port: int, *uris: str, **more: object) -> RouteMessage:
    return msgspec.convert({"host": "127.0.0.1", "port": port, "uris": list(uris), **more}, RouteMessage)


def ports(routes: Routes, host: str, path: str = "/") -> list[int]:
    return sorted(endpoint.port for endpoint in routes.find(host, path))


def test_hosts_match_in_any_case_and_without_the_port() -> None:
    """`HELLO.localhost:8080` finds what registered as `hello.LOCALHOST`."""
    routes = Routes()
    routes.register(route(1, "hello.LOCALHOST"), 0)
    assert ports(routes, "HELLO.localhost:8080") == [1]
    assert ports(routes, "other.localhost") == []


def test_endpoints_take_turns() -> None:
    """Two instances are asked in turn, each first once."""
    routes = Routes()
    routes.register(route(1, "a"), 0)
    routes.register(route(2, "a"), 0)
    assert {routes.find("a", "/")[0].port for _ in range(2)} == {1, 2}


def test_the_longest_path_wins() -> None:
    """A `host/path` uri takes only that prefix, by whole segments."""
    routes = Routes()
    routes.register(route(1, "a"), 0)
    routes.register(route(2, "a/api"), 0)
    assert ports(routes, "a", "/api/v1?x=1") == [2]
    assert ports(routes, "a", "/apis") == [1]


def test_unregister_takes_one_endpoint() -> None:
    """Only the endpoint that is named goes."""
    routes = Routes()
    routes.register(route(1, "a", "b"), 0)
    routes.register(route(2, "a"), 0)
    routes.unregister(route(1, "a"))
    assert ports(routes, "a") == [2]
    assert ports(routes, "b") == [1]


def test_silent_routes_are_forgotten() -> None:
    """120 s after the last word, or sooner when the message says so; a new word renews."""
    routes = Routes()
    routes.register(route(1, "a"), 0)
    routes.register(route(2, "b", stale_threshold_in_seconds=2), 0)
    routes.prune(3)
    assert routes.uris() == ["a"]
    routes.register(route(1, "a"), 100)
    routes.prune(130)
    assert routes.uris() == ["a"]
    routes.prune(221)
    assert routes.uris() == []


@pytest.mark.parametrize(
    "body",
    [
        '{"host":"h","port":"80","uris":["a"]}',
        '{"host":"h","port":80,"uris":["a"],"private_instance_index":3}',
        '{"host":"h","port":80,"uris":["a"],"tags":{"n":1}}',
        '{"host":"h","uris":["a"]}',
    ],
)
def test_a_wrong_type_drops_the_message(body: str) -> None:
    """The strictness of gorouter: one wrong type anywhere and the message is none."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=RouteMessage)


def test_null_is_absent() -> None:
    """A null field counts as not there, an unknown one is not looked at."""
    message = msgspec.json.decode('{"host":"h","port":1,"uris":null,"app":null,"dea":7}', type=RouteMessage)
    assert message.uris is None


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(head: bytes) -> None:
    """No Host, two of them, a space before the colon, or no HTTP at all."""
    assert parse_head(head) is None


def test_a_forwarded_head_names_the_client_and_closes() -> None:
    """The client's address and the app's ids are added, the app's own claim of them is not passed on."""
    request = parse_head(
        b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nX-Forwarded-For: 1.2.3.4\r\n"
        b"X-Cf-Instanceid: forged\r\n\r\n"
    )
    assert request is not None
    head = request.forwarded(Endpoint("h", 1, "app", "inst", 0), "5.6.7.8").decode()
    assert "Connection: close\r\n" in head
    assert "X-Forwarded-For: 1.2.3.4, 5.6.7.8\r\n" in head
    assert "X-Cf-Instanceid: inst\r\n" in head
    assert "keep-alive" not in head
    assert "forged" not in head


@asynccontextmanager
async def running(app: object) -> AsyncIterator[tuple[Gateway, int]]:
    """A gateway with one route `a` to a server that runs `app(reader, writer)`."""
    gateway = Gateway(servers=(), host="127.0.0.1", port=0, log=structlog.get_logger())
    front = await gateway.listen()
    back = await asyncio.start_server(app, "127.0.0.1", 0)  # type: ignore[arg-type]
    port = back.sockets[0].getsockname()[1]
    gateway.routes.register(route(port, "a"), 0)
    try:
        yield gateway, gateway.port
    finally:
        front.close()
        back.close()


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_body_and_its_answer_pass_whole() -> None:
    """A megabyte goes through and comes back unchanged."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(1 << 20)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
        writer.close()

    body = bytes(range(256)) * 4096
    async with running(echo) as (_, port):
        answer = await ask(port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n" + body)
    assert answer.partition(b"\r\n\r\n")[2] == body


async def test_a_websocket_talks_both_ways() -> None:
    """After an upgrade bytes flow in both directions, each as soon as it is said."""

    async def socket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Upgrade: websocket" in head
        assert b"Connection: Upgrade" in head
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\nhello")
        writer.write((await reader.readexactly(4)).upper())
        writer.close()

    async with running(socket) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await reader.readuntil(b"hello")
        writer.write(b"ping")
        assert await reader.read() == b"PING"
        writer.close()


async def test_unknown_and_dead_are_told_apart() -> None:
    """404 unknown_route for a host that nobody registered, 502 endpoint_failure when nobody listens."""

    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with running(never) as (gateway, port):
        assert b"X-Cf-RouterError: unknown_route" in await ask(port, b"GET / HTTP/1.1\r\nHost: b\r\n\r\n")
        gateway.routes.register(route(9, "dead"), 0)
        answer = await ask(port, b"GET / HTTP/1.1\r\nHost: dead\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502")


LOOPBACK = (
    "localhost",
    "LOCALHOST:8080",
    "x.localhost",
    "x.y.localhost.:1",
    "127.0.0.1",
    "127.1.2.3:80",
    "[::1]:80",
    "[::1]",
)
OTHERS = (
    "evil.example",
    "localhost.evil.example",
    "notlocalhost",
    "192.0.2.1:80",
    "[fe80::1]:80",
    "127.0.0.1.nip.io",
    "",
    "::::",
)


@pytest.mark.parametrize(
    ("host", "expected"), [*((name, True) for name in LOOPBACK), *((name, False) for name in OTHERS)]
)
def test_which_names_are_the_machine_s_own(host: str, expected: bool) -> None:
    """As a Host header has them, with or without a port."""
    assert is_loopback_name(host) is expected


@pytest.mark.parametrize(
    ("host", "listed"), [("b.localhost", True), ("127.0.0.1", True), ("evil.example", False)]
)
async def test_routes_are_listed_for_loopback_names_alone(host: str, listed: bool) -> None:
    """Whoever asks by another name is told that there is no such route, and nothing of what else runs here."""

    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with running(never) as (gateway, port):
        gateway.routes.register(route(9, "secret.localhost"), 0)
        answer = await ask(port, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert (b"secret.localhost" in answer) is listed


async def test_a_refusing_endpoint_is_passed_over() -> None:
    """With one dead and one living instance every request is answered."""

    async def ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()

    async with running(ok) as (gateway, port):
        gateway.routes.register(route(9, "a"), 0)
        for _ in range(4):
            assert (await ask(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 204")
