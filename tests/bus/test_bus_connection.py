"""Servers that die, stall, send invalid data, come back: the agent never gives up (docs/bus.md, "One client a connection")."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from servers import FakeServer, Host, NatsServer, Peer, Refusing, nats_server, until

from agent.bus import commands as c
from agent.bus import messages as m
from agent.bus.wire import BusError, Connection, Unsendable
from agent.config import NatsSettings

pytestmark = pytest.mark.bus


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "first") as one:
        yield one


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[AsyncExitStack]:
    """What is pushed here ends with the test, whatever becomes of it."""
    async with AsyncExitStack() as stack:
        yield stack


def make_host(hosts: AsyncExitStack, servers: list[str], tmp_path: Path) -> Host:
    host = Host(servers, tmp_path / "outbox")
    hosts.push_async_callback(host.stop)
    return host


async def hears(host: Host, server: NatsServer, app: str) -> None:
    """A command said on ``server`` is carried out."""
    peer = await Peer.open(server)
    await peer.say("staging.stop", b'{"app_id":"%b"}' % app.encode())
    await until(lambda: c.StopStagingCommand(m.StagingStop(app)) in host.commands, f"{app} is heard")
    await peer.close()


async def test_a_killed_server_is_found_again_on_its_port(
    server: NatsServer, hosts: AsyncExitStack, tmp_path: Path
) -> None:
    """Five deaths; after each all is said anew, and commands are heard."""
    host = make_host(hosts, [server.url], tmp_path)
    await host.run_until_connected()
    for death in range(1, 6):
        await server.kill()
        await until(lambda: not host.bus.connected, "the death is seen")
        await server.start()
        await until(lambda: host.bus.connected, "connected again")
        assert host.connects == death + 1
        await hears(host, server, f"after-{death}")


async def test_a_server_that_is_not_there_at_the_start_is_waited_for(
    server: NatsServer, hosts: AsyncExitStack, tmp_path: Path
) -> None:
    """The agent starts without a bus; why is logged once, not at each try."""
    await server.kill()
    host = make_host(hosts, [server.url], tmp_path)
    host.run()
    await until(lambda: host.logged("bus_unreachable"), "it is told")
    assert "Connect call failed" in host.lines[0]["error"]

    await server.start()
    await until(lambda: host.bus.connected, "connected")

    assert len(host.logged("bus_unreachable")) == 1


async def test_a_stalled_server_is_found_out_and_another_taken(
    server: NatsServer, hosts: AsyncExitStack, tmp_path: Path
) -> None:
    """Within 4 to 7 seconds on a quiet machine; nats-py itself takes minutes."""
    async with nats_server(tmp_path / "second") as second:
        host = make_host(hosts, [server.url, second.url], tmp_path)
        await host.run_until_connected()
        taken = server if host.logged("bus_connected")[0]["server"] == server.url else second
        other = second if taken is server else server

        taken.stall()
        stalled_at = time.monotonic()
        await until(lambda: host.connects == 2, "the other server is taken", 30)
        print(f"stall found and the other taken after {time.monotonic() - stalled_at:.1f} s")

        assert host.logged("bus_connected")[1]["server"] == other.url
        await hears(host, other, "after the stall")
        taken.resume()


async def test_dropping_a_stalled_connection_leaves_no_task_and_no_descriptor(server: NatsServer) -> None:
    """nats-py's own close() waits for the server to take what is pending, and once cancelled leaves all behind."""
    tasks, descriptors = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
    connection = await Connection.open(NatsSettings(), server.url, "test", lambda _: None, print)
    for letter in "abc":
        await connection.subscribe(letter, print)
    await connection.barrier()

    server.stall()
    for _ in range(20):
        await connection.publish("big", b"x" * 1_000_000)
    with pytest.raises(BusError, match="has not replied"):
        await connection.barrier(0.2)

    assert connection.ended.is_set()
    await until(lambda: len(asyncio.all_tasks()) == tasks, "no task is left")
    assert len(os.listdir("/proc/self/fd")) == descriptors
    server.resume()


async def test_a_barrier_asks_behind_what_was_published(hosts: AsyncExitStack) -> None:
    """While the server is slow nats-py writes a PING at once and a message later; the answer would prove nothing about it."""
    reads_on = asyncio.Event()

    async def pause(_: FakeServer, __: asyncio.StreamWriter) -> None:
        await reads_on.wait()

    server = FakeServer(pause)
    await server.start()
    hosts.push_async_callback(server.close)
    connection = await Connection.open(NatsSettings(), server.url, "test", lambda _: None, print)
    hosts.push_async_callback(connection.close)
    for _ in range(20):  # more than the socket's buffers take: the flusher of nats-py waits
        await connection.publish("big", b"x" * 1_000_000)
        await asyncio.sleep(0)
    await connection.publish("last", b"x")
    assert connection._client.pending_data_size > 0

    barrier = asyncio.create_task(connection.barrier(30))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reads_on.set()
    await barrier

    order = [line.split()[0] for line in server.heard if line.startswith((b"PUB last", b"PING"))]
    assert order == [b"PING", b"PUB", b"PING"]  # the first is that of the connect


async def err_at_once(_: FakeServer, writer: asyncio.StreamWriter) -> None:
    writer.write(b"-ERR 'Unknown Protocol Operation'\r\n")


async def err_without_words(_: FakeServer, writer: asyncio.StreamWriter) -> None:
    """Which ends nats-py's read loop and leaves it connected, and deaf."""
    writer.write(b"-ERR \r\n")


async def die_in_a_message(_: FakeServer, writer: asyncio.StreamWriter) -> None:
    writer.write(b"MSG dea.stop 2 2000\r\n{")
    writer.transport.abort()


async def info_that_is_none(_: FakeServer, writer: asyncio.StreamWriter) -> None:
    writer.write(b"INFO {nonsense\r\n")


async def garbage(_: FakeServer, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    "talk",
    [None, err_at_once, err_without_words, die_in_a_message, info_that_is_none, garbage],
    ids=["silent", "err", "err without words", "dies in a message", "bad info", "garbage"],
)
async def test_whatever_a_server_does_the_next_is_tried(
    server: NatsServer, hosts: AsyncExitStack, tmp_path: Path, talk: object
) -> None:
    """A fake server comes first; the agent ends at the real one, and hears."""
    fake = FakeServer(talk)  # type: ignore[arg-type]
    hosts.push_async_callback(fake.close)
    await fake.start()
    host = make_host(hosts, [fake.url], tmp_path)
    host.run()
    await until(lambda: fake.connections >= 1, "the fake is tried")
    await until(
        lambda: host.logged("bus_broken") or host.logged("bus_unreachable") or host.logged("bus_error"),
        "it is told",
    )
    await host.stop()

    host = make_host(hosts, [fake.url, server.url], tmp_path)
    host.run()
    await until(
        lambda: any(one["server"] == server.url for one in host.logged("bus_connected")), "the real one", 40
    )
    await hears(host, server, "a")


async def test_a_server_that_dies_between_connect_and_subscribe_costs_that_connection_only(
    hosts: AsyncExitStack, tmp_path: Path
) -> None:
    """The PONG of the connect is its last word; a hundred times."""

    async def die(_: FakeServer, writer: asyncio.StreamWriter) -> None:
        await writer.drain()
        writer.transport.abort()

    fake = FakeServer(die)
    hosts.push_async_callback(fake.close)
    await fake.start()
    host = make_host(hosts, [fake.url] * 25, tmp_path)
    host.run()
    await until(lambda: fake.connections >= 100, "a hundred tries", 40)
    assert host.connects == 0


async def test_every_call_on_an_ended_connection_fails_in_the_same_way(server: NatsServer) -> None:
    """Whatever it is, the caller takes a new connection."""
    connection = await Connection.open(NatsSettings(), server.url, "test", lambda _: None, print)
    await server.kill()
    await connection.ended.wait()
    with pytest.raises(BusError, match="subscribe to a"):
        await connection.subscribe("a", print)
    with pytest.raises(BusError, match="publish on a"):
        await connection.publish("a", b"")
    with pytest.raises(BusError, match="ended"):
        await connection.barrier()


async def test_a_cancelled_task_ends_also_when_nats_py_swallowed_its_cancellation(server: NatsServer) -> None:
    """publish() waits for a stalled server once 64 MiB are pending, and there swallows CancelledError."""
    connection = await Connection.open(NatsSettings(), server.url, "test", lambda _: None, lambda _: None)
    server.stall()
    went_on = False

    async def publish_for_ever() -> None:
        nonlocal went_on
        while True:
            await connection.publish("big", b"x" * 1_000_000)

    task = asyncio.create_task(publish_for_ever())
    await until(lambda: connection._client.pending_data_size > 64 << 20, "the pending buffer is full")
    task.cancel()
    await asyncio.wait({task}, timeout=10)

    assert task.cancelled()
    await connection.close()
    server.resume()


async def test_a_message_that_no_server_takes_is_the_messages_fault(server: NatsServer) -> None:
    """Too large, on a subject that is none, on one that would end the connection: refused before it leaves."""
    connection = await Connection.open(NatsSettings(), server.url, "test", lambda _: None, print)
    for subject, payload in [
        ("a", b"x" * (1 << 20) + b"x"),
        ("", b""),
        ("a b", b""),
        ("a\r\nPUB", b""),
        ("x" * 4000, b""),
        ("\ud800", b""),
    ]:
        with pytest.raises(Unsendable):
            await connection.publish(subject, payload)
    await connection.publish("x" * 3900, b"the longest")
    await connection.publish("a", b"x" * (1 << 20))
    await connection.barrier()
    assert not connection.ended.is_set()
    await connection.close()


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_reason_that_a_server_gave_before_it_closed_is_reported(at_once: bool) -> None:
    """Also when our own words met the reset first: the reason is in what it left, not in the error of the socket."""
    server = Refusing(b"Maximum Connections Exceeded", at_once=at_once)
    await server.start()
    before = len(os.listdir("/proc/self/fd"))
    try:
        for _ in range(20):
            with pytest.raises(BusError, match="nats: 'Maximum Connections Exceeded'"):
                await Connection.open(
                    NatsSettings(), server.url, "test", lambda _arrived: None, lambda _error: None
                )
    finally:
        await server.close()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before, "no descriptor is kept")


async def test_a_server_that_closes_without_a_reason_is_reported_as_that() -> None:
    """Nothing is made up."""
    server = Refusing(b"", at_once=True)
    await server.start()
    try:
        with pytest.raises(BusError, match=r"reset|lost|closed"):
            await Connection.open(
                NatsSettings(), server.url, "test", lambda _arrived: None, lambda _error: None
            )
    finally:
        await server.close()
