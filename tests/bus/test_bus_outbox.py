"""Events arrive at least once, in order and with identical bytes, whatever dies meanwhile (docs/bus.md, "Delivery guarantees")."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from servers import (
    FakeServer,
    Host,
    NatsServer,
    Peer,
    Relay,
    exited,
    kept_files,
    nats_server,
    route,
    staged,
    until,
)
from servers_fixtures import Listen, MakeHost

from agent.bus import messages as m
from agent.bus.outbox import Kept, Outbox

pytestmark = pytest.mark.bus


async def until_left(host: Host, events: int) -> None:
    await until(lambda: host.bus.unsent <= events, f"{events} are left to tell")


async def test_nothing_is_lost_over_deaths_of_the_server_in_mid_burst(
    server: NatsServer, stack: AsyncExitStack, tmp_path: Path
) -> None:
    """1,000 events over 12 kill -9: each arrives, first arrivals in order, repeats with identical bytes."""
    relay = Relay(lambda: server.port)
    stack.push_async_callback(relay.close)
    await relay.start()
    host = Host([relay.url], tmp_path / "outbox")
    stack.push_async_callback(host.stop)
    await host.run_until_connected()
    peer = await Peer.open(server, "box.>")
    heard: list[bytes] = []
    deaths = set(random.sample(range(20), 12))
    in_the_middle = 0
    for burst in range(20):
        for number in range(burst * 50, burst * 50 + 50):
            host.bus.publish_event(staged(number), reply_to=f"box.{number % 5}")
        if burst in deaths:
            await until_left(host, random.randint(1, 50))
            relay.is_open = False
            in_the_middle += 0 < host.bus.unsent < 50
            await server.kill()
            await until(lambda: not host.bus.connected, "the death is seen")
            await peer.ended()
            heard += [payload for _, _, payload in peer.heard]
            await peer.close()
            await server.start()
            peer = await Peer.open(server, "box.>")
            relay.is_open = True
        await until(lambda: host.bus.connected, "connected")
    await until(lambda: not host.bus.unsent, "all is told")
    await peer.flush()
    heard += [payload for _, _, payload in peer.heard]
    await peer.close()
    print(f"{len(heard) - 1_000} repeats over 12 deaths, {in_the_middle} of them in mid-burst")

    assert list(dict.fromkeys(heard)) == [m.encode(staged(number)) for number in range(1_000)]
    assert kept_files(tmp_path) == []


async def test_an_acknowledgement_that_was_lost_repeats_the_messages_with_the_same_bytes(
    server: NatsServer, stack: AsyncExitStack, listen: Listen, tmp_path: Path
) -> None:
    """The link dies between PUB and PONG: told, not known, told again."""
    relay = Relay(lambda: server.port)
    stack.push_async_callback(relay.close)
    await relay.start()
    host = Host([relay.url], tmp_path / "outbox")
    stack.push_async_callback(host.stop)
    await host.run_until_connected()
    peer = await listen("box", "droplet.exited")
    relay.answers = False
    host.bus.publish_event(staged(1), reply_to="box")
    host.bus.publish_event(exited(1))
    await until(lambda: len(peer.heard) == 2, "told")
    assert len(kept_files(tmp_path)) == 2
    await until(lambda: not host.bus.connected, "the silence is noticed")

    relay.answers = True

    await until(lambda: not host.bus.unsent, "told again")
    await peer.flush()
    assert peer.on("box") == [m.encode(staged(1))] * 2
    assert peer.on("droplet.exited") == [m.encode(exited(1))] * 2


async def test_events_survive_the_agent(
    server: NatsServer, make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """Told without a bus, found by the next agent, in order and byte for byte."""
    await server.kill()
    first = make_host()
    first.run()
    for number in range(30):
        first.bus.publish_event(staged(number), reply_to="box")
    await until(lambda: len(kept_files(tmp_path)) == 30, "they are kept")
    await first.stop()
    await server.start()
    peer = await listen("box")

    second = make_host()
    second.bus.publish_event(staged(30), reply_to="box")
    await second.run_until_connected()

    await until(lambda: len(peer.heard) == 31, "all arrive")
    assert peer.on("box") == [m.encode(staged(number)) for number in range(31)]
    await until(lambda: kept_files(tmp_path) == [], "the files are gone")


async def test_a_damaged_entry_is_set_aside_and_reported(
    make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """The others go out; a half-written file is swept away."""
    outbox = Outbox(tmp_path / "outbox")
    for number in range(3):
        outbox.write(outbox.add(Kept("box", b"%d" % number)))
    (tmp_path / "outbox" / "000000000002.event").write_bytes(b"\x93\xa3")
    (tmp_path / "outbox" / "000000000004.new").write_bytes(b"half")
    (tmp_path / "outbox" / "name.event").mkdir()
    peer = await listen("box")

    host = make_host()
    await host.run_until_connected()

    await until(lambda: len(peer.heard) == 2, "the others arrive")
    assert peer.on("box") == [b"0", b"2"]
    assert len(host.logged("outbox_entry_damaged")) == 2
    await until(lambda: kept_files(tmp_path) == ["000000000002.damaged", "name.damaged"], "only these stay")


async def test_a_message_that_no_server_takes_is_set_aside_and_what_is_behind_it_goes_on(
    make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """Over the server's limit, or for an inbox that is no subject: it may not block the queue, nor end the connection."""
    peer = await listen(">")
    host = make_host()
    await host.run_until_connected()

    host.bus.publish_event(m.DeaShutdown("host1", "10.0.0.1", "0.0.1", {"x" * (1 << 20): 1}))
    host.bus.publish_event(staged(0), reply_to="no subject")
    host.bus.publish_event(staged(1), reply_to="y" * 4_000)
    host.bus.publish(m.Advertise("host1", ("x" * (1 << 20),), 1, 1, {}, {}))
    host.bus.publish_event(staged(2), reply_to="box")

    await until(lambda: peer.on("box"), "the last arrives")
    assert peer.on("box") == [m.encode(staged(2))]
    refused = host.logged("bus_message_unsendable")
    assert len(refused) == 4
    assert max(len(str(line)) for line in refused) < 1000
    assert host.connects == 1
    await until(lambda: not host.bus.unsent, "the server's word for the last is in")
    assert [name.partition(".")[2] for name in kept_files(tmp_path)] == ["damaged"] * 3


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second"])
async def test_a_staging_reply_that_is_too_large_is_replaced_by_an_error(
    stack: AsyncExitStack, tmp_path: Path, is_first: bool
) -> None:
    """The controller would wait 15 minutes for it; nothing is left in the outbox."""
    (tmp_path / "small").mkdir()
    server = await stack.enter_async_context(nats_server(tmp_path / "small", "max_payload: 8192"))
    host = Host([server.url], tmp_path / "outbox")
    stack.push_async_callback(host.stop)
    peer = await Peer.open(server, "box")
    stack.push_async_callback(peer.close)
    await host.run_until_connected()

    if is_first:
        host.bus.publish_event(m.StagingReply1("t", "x" * 9_000), reply_to="box")
    else:
        host.bus.publish_event(m.StagingReply2("t", "app", procfile={"web": "x" * 9_000}), reply_to="box")

    await until(lambda: peer.heard, "an answer")
    (answer,) = [json.loads(payload) for payload in peer.on("box")]
    assert answer["task_id"] == "t"
    assert re.fullmatch(
        r"Error staging: the reply has 9\d{3} bytes, more than the bus accepts", answer["error"]
    )
    await until(lambda: not kept_files(tmp_path), "nothing is kept")


async def test_a_heartbeat_that_is_too_large_is_split(stack: AsyncExitStack, tmp_path: Path) -> None:
    """Each under an id of its own, all instances in one or the other."""
    (tmp_path / "small").mkdir()
    server = await stack.enter_async_context(nats_server(tmp_path / "small", "max_payload: 8192"))
    host = Host([server.url], tmp_path / "outbox")
    stack.push_async_callback(host.stop)
    peer = await Peer.open(server, "dea.heartbeat")
    stack.push_async_callback(peer.close)
    await host.run_until_connected()
    entries = tuple(
        m.HeartbeatEntry("default", "a" * 200, "v", f"i{n}", n, "RUNNING", 1.5) for n in range(50)
    )

    host.bus.publish(m.Heartbeat(entries, "host1"))

    await until(lambda: len(peer.heard) == 3, "three parts")
    beats = [m.decode(m.Heartbeat, payload) for payload in peer.on("dea.heartbeat")]
    assert [beat.dea for beat in beats] == ["host1", "host1-2", "host1-3"]
    assert sorted(one.index for beat in beats for one in beat.droplets) == list(range(50))
    assert not host.logged("bus_message_unsendable")


async def test_a_message_and_an_event_leave_in_the_order_in_which_they_were_published(
    make_host: MakeHost, listen: Listen
) -> None:
    """A register said before an unregister must not arrive after it: the router would route to a dead app."""
    peer = await listen("router.*", "dea.*")
    host = make_host()
    await host.run_until_connected()
    await until(lambda: peer.heard, "the greeting")

    for _ in range(50):
        host.bus.publish(route(m.RouterRegister))
        host.bus.publish_event(route(m.RouterUnregister))
        host.bus.publish(m.Heartbeat((), "host1"))

    await until(lambda: len(peer.heard) == 151, "all arrive")
    assert [subject for subject, _, _ in peer.heard[1:]] == [
        "router.register",
        "router.unregister",
        "dea.heartbeat",
    ] * 50


async def test_an_exit_waits_for_a_listener_and_what_is_behind_it_goes_on(
    make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """The server's acknowledgement is no listener's. Order holds among the exits."""
    boxes = await listen("box")
    host = make_host()
    await host.run_until_connected()
    for number in range(3):
        host.bus.publish_event(exited(number))
    host.bus.publish_event(staged(1), reply_to="box")
    await until(lambda: boxes.heard, "the reply behind them arrives")
    await until(lambda: len(kept_files(tmp_path)) == 3, "the exits are kept")

    peer = await listen("droplet.exited")
    host.bus.publish_event(exited(3))

    await until(lambda: len(peer.heard) >= 4, "the exits arrive")
    assert peer.on("droplet.exited") == [m.encode(exited(number)) for number in range(4)]
    await until(lambda: kept_files(tmp_path) == [], "nothing is kept")
    assert len(peer.heard) == 4


@pytest.mark.parametrize(
    ("answer", "is_heard"),
    [
        (b"MSG %b %b 0\r\n\r\n", True),
        (b"MSG %b %b 2\r\nok\r\n", True),
        (b"HMSG %b %b 18 18\r\nNATS/1.0\r\nA: b\r\n\r\n\r\n", True),
        (b"HMSG %b %b 16 16\r\nNATS/1.0 503\r\n\r\n\r\n", False),
    ],
    ids=["empty", "a word", "a header", "503"],
)
async def test_only_the_servers_503_means_that_there_is_no_listener(
    stack: AsyncExitStack, tmp_path: Path, answer: bytes, is_heard: bool
) -> None:
    """A listener that answers has heard it, whatever it says."""

    async def answer_exits(fake: FakeServer, writer: asyncio.StreamWriter) -> None:
        words = [line.split() for line in fake.heard]
        number = next((word[2] for word in words if word[0] == b"SUB" and word[1].startswith(b"_INBOX")), b"")
        for word in words:
            if word[:2] == [b"PUB", b"droplet.exited"]:
                writer.write(answer % (word[2], number))
        fake.heard = [line for line in fake.heard if line.startswith(b"SUB")]

    async def nothing(_: FakeServer, __: asyncio.StreamWriter) -> None: ...

    fake = FakeServer(nothing, answer_exits)
    stack.push_async_callback(fake.close)
    await fake.start()
    host = Host([fake.url], tmp_path / "outbox")
    stack.push_async_callback(host.stop)
    await host.run_until_connected()

    host.bus.publish_event(exited(1))

    if is_heard:
        await until(lambda: not host.bus.unsent, "it is told")
    else:
        await until(lambda: host.bus._sender.unlistened, "nobody listens")
        assert host.bus.unsent == 1


async def test_an_exit_that_nobody_wants_is_given_up(make_host: MakeHost, tmp_path: Path) -> None:
    """After its patience, counted while the bus is there; with a line in the log."""
    host = make_host(listener_patience_s=1.0)
    host.bus.publish_event(exited(1))
    await host.run_until_connected()
    connected_at = time.monotonic()

    await until(lambda: kept_files(tmp_path) == [], "it is given up")

    assert time.monotonic() - connected_at >= 0.9
    assert [line["subject"] for line in host.logged("bus_event_without_listener")] == ["droplet.exited"]


async def test_time_without_a_bus_does_not_count_against_an_exit(
    server: NatsServer, make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """A bus that comes back before its peers (sequence 17), after it was away longer than the patience lasts."""
    host = make_host(listener_patience_s=2.0)
    await host.run_until_connected()
    host.bus.publish_event(exited(1))
    await until(lambda: host.bus._sender.unlistened, "nobody listens")
    await server.kill()
    await until(lambda: not host.bus.connected, "the death is seen")
    away_since = time.monotonic()
    await until(lambda: time.monotonic() - away_since > 2.2, "longer than its patience")
    await server.start()
    await until(lambda: host.connects == 2, "connected")
    await until(lambda: host.bus._sender.unlistened, "still nobody listens")

    peer = await listen("droplet.exited")

    await until(lambda: peer.heard, "it arrives")
    assert host.logged("bus_event_without_listener") == []
