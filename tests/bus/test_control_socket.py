"""The local control socket: only root may use it, and a misbehaving client affects only itself."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from typing import Any

import aiohttp
import pytest
from bad_input_kit import SMALL
from driver import Host, poll

pytestmark = pytest.mark.bus

#: Descriptors that a follower costs: its connection and the two streams.
OF_ONE = 3
#: What is asked, and the statuses that may be the answer (0: the connection is closed without one).
ASKED: tuple[tuple[bytes, set[int]], ...] = (
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", {404}),
    (b"GET /v1/instances/nobody/logs HTTP/1.1\r\nHost: a\r\n\r\n", {404}),
    (b"GET /v1/instances/../../../../etc/shadow HTTP/1.1\r\nHost: a\r\n\r\n", {404}),
    (b"GET /v1/instances/%2e%2e%2f%2e%2e%2fetc/logs HTTP/1.1\r\nHost: a\r\n\r\n", {404}),
    (b"GET /v1/instances/..%2f..%2f/logs?stream=../../db/agent.json HTTP/1.1\r\nHost: a\r\n\r\n", {404}),
    (b"GET /v1/instances/%00/logs HTTP/1.1\r\nHost: a\r\n\r\n", {404, 400}),
    (b"GET /v1/instances/%ff%fe/logs HTTP/1.1\r\nHost: a\r\n\r\n", {404, 400}),
    (b"GET /v1/staging/../log HTTP/1.1\r\nHost: a\r\n\r\n", {404}),
    (b"GET /v1/staging/t/log?wait_s=1e9 HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    (b"GET /v1/staging/t/log?wait_s=0.01 HTTP/1.1\r\nHost: a\r\n\r\n", {404}),
    (b"GET /v1/apps/%2e%2e%2f/logs HTTP/1.1\r\nHost: a\r\n\r\n", {200}),  # no such app: nothing to tell
    (b"POST /v1/instances/nobody/shell HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", {404}),
    (b"GET /v1/instances?after=x&wait_s=1 HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    (b"GET /v1/instances?after=1&wait_s=1e9 HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    (b"GET /v1/instances?after=1 HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    (b"DELETE /v1/instances HTTP/1.1\r\nHost: a\r\n\r\n", {405}),
    (b"GET /v1/detach HTTP/1.1\r\nHost: a\r\n\r\n", {405}),
    (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", {400, 414, 404}),
    (b"GET /v1/status HTTP/1.1\r\n" + b"X-Many: y\r\n" * 50_000 + b"\r\n", {400, 0}),
    (b"GET /v1/status HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", {200, 400}),
    (b"GET /v1/status HTTP/1.1\r\nContent-Length: -1\r\n\r\n", {400}),
    (b"GET /v1/status HTTP/9.9\r\n\r\n", {400}),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01", {400, 0}),
    (b"\0" * 4096 + b"\r\n\r\n", {400, 0}),
    (b"{}\r\n\r\n", {400}),
)


async def ask(host: Host, request: bytes) -> int:
    """The status of the answer; 0: there was none."""
    reader, writer = await connect(host)
    try:
        writer.write(request)
        line = await asyncio.wait_for(reader.readline(), 20)
        return int(line.split()[1]) if line else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


async def instances(
    host: Host, after: str | None = None, wait_s: str | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """The number of changes in the answer's header, and its rows."""
    query = {key: value for key, value in (("after", after), ("wait_s", wait_s)) if value is not None}
    connector = aiohttp.UnixConnector(str(host.base_dir / "agent.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.get("http://agent/v1/instances", params=query) as answer:
            assert answer.status == 200, await answer.text()
            return answer.headers["X-Garrison-Changes"], await answer.json()


async def connect(host: Host) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(host.base_dir / "agent.sock"))


def descriptors(host: Host) -> int:
    return len(os.listdir(f"/proc/{host.running.pid}/fd"))


async def test_the_socket_is_roots_alone_and_gone_when_the_agent_is(host: Host) -> None:
    """Whoever may speak to it may open a shell in every app."""
    path = host.base_dir / "agent.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == 0

    await host.stop_agent()

    assert not path.exists()


async def test_a_hostile_request_is_refused_and_the_next_one_answered(host: Host) -> None:
    """Paths that climb, bodies without end, bytes that are no HTTP: none of it ends, detaches or slows the agent."""
    answers = [await ask(host, request) for request, _ in ASKED]

    wrong = {
        request[:60]: answer
        for (request, allowed), answer in zip(ASKED, answers, strict=True)
        if answer not in allowed
    }
    assert wrong == {}
    assert (await host.status())["connected"]
    assert host.running.log("detach_asked") == []


async def test_followers_that_vanish_are_dropped_and_the_others_read_on(host: Host) -> None:
    """Also while an app says nothing: a client that has gone is noticed by itself."""
    app = host.make_app("quiet")
    running = await host.run(app, limits=SMALL)
    before = descriptors(host)
    follow = f"GET /v1/apps/{app.id}/logs?follow=1 HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    followers = [await connect(host) for _ in range(60)]
    for _, writer in followers:
        writer.write(follow)
    for reader, _ in followers:
        await asyncio.wait_for(reader.readuntil(b"listening"), 20)
    assert descriptors(host) >= before + 60

    staying = followers.pop()
    for _, writer in followers:
        writer.transport.abort()
    assert await poll(lambda: descriptors(host) <= before + OF_ONE, 20), (before, descriptors(host))

    await host.ask_app(running["stats"]["port"], "exit 3")
    await asyncio.wait_for(staying[0].readuntil(b"app instance exited, exit status 3"), 20)
    staying[1].close()


async def test_a_follower_that_does_not_read_slows_nobody(host: Host) -> None:
    """An app that says a lot goes on, and so does the agent."""
    app = host.make_app("loud")
    command = "head -c 8388608 /dev/zero | tr '\\0' x; echo said; exec ./listener"
    reader, writer = await connect(host)
    running = await host.run(app, limits=SMALL, start_command=command)
    writer.write(f"GET /v1/apps/{app.id}/logs?follow=1 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    await reader.readline()

    assert "PORT" in await host.environment_of(running["stats"]["port"])
    assert (await host.status())["instances"] == 1
    await host.stop(app)
    await host.wait_gone(app)
    writer.transport.abort()


async def test_a_long_poll_is_answered_at_the_change(host: Host) -> None:
    """Each answer has the number to wait from, so that no change is missed between two requests."""
    changes, rows = await instances(host)
    assert rows == []
    began = time.monotonic()
    waiting = asyncio.create_task(instances(host, changes, "30"))
    app = host.make_app("waited-for")
    await host.start(app, limits=SMALL)

    states = list[str]()
    async with asyncio.timeout(25):
        changes, rows = await waiting
        while not states or states[-1] != "RUNNING":
            states.append(rows[0]["state"])
            if states[-1] != "RUNNING":
                changes, rows = await instances(host, changes, "30")

    assert states[0] != "RUNNING"
    assert time.monotonic() - began < 25
    _, rows = await instances(host, "999999", "30")  # of an agent before it: the number is another one
    assert len(rows) == 1


async def test_a_long_poll_is_answered_when_its_time_is_over(host: Host) -> None:
    """Not before it, and with the same number."""
    changes, _ = await instances(host)
    began = time.monotonic()

    assert await instances(host, changes, "0.5") == (changes, [])

    assert 0.5 <= time.monotonic() - began < 10
    assert await instances(host, changes, "0") == (changes, [])


async def test_a_long_poll_whose_client_has_gone_leaves_nothing(host: Host) -> None:
    """Its connection is closed long before its time is over, and the agent ends as quickly as ever."""
    changes, _ = await instances(host)
    before = descriptors(host)
    request = f"GET /v1/instances?after={changes}&wait_s=30 HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    waiting = [await connect(host) for _ in range(60)]
    for _, writer in waiting:
        writer.write(request)
    assert await poll(lambda: descriptors(host) >= before + 60, 20)

    began = time.monotonic()
    staying = waiting.pop()
    for _, writer in waiting:
        writer.transport.abort()
    assert await poll(lambda: descriptors(host) <= before + OF_ONE, 20), (before, descriptors(host))
    assert time.monotonic() - began < 25

    await host.start(host.make_app("late"), limits=SMALL)
    head = await asyncio.wait_for(staying[0].readuntil(b"\r\n\r\n"), 20)
    assert head.startswith(b"HTTP/1.1 200")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    assert len(json.loads(await staying[0].readexactly(length))) == 1
    staying[1].close()
