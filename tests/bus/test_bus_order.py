"""Commands are carried out in the order of arrival, over all subjects (docs/bus.md, "Order of what comes in")."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from servers import Host, NatsServer, Peer, put, until

from agent.bus import commands as c
from agent.bus import messages as m
from agent.bus.wire import Arrived, Connection
from agent.config import NatsSettings

pytestmark = pytest.mark.bus
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
COUNT = 2_000
SUBJECTS = [f"order.{letter}" for letter in "abcdefgh"]


@pytest.fixture
async def writer(server: NatsServer) -> AsyncIterator[Peer]:
    peer = await Peer.open(server)
    yield peer
    await peer.close()


async def test_what_is_read_is_handed_over_in_wire_order_and_callbacks_are_not(
    server: NatsServer, writer: Peer
) -> None:
    """2,000 numbered messages over 8 subjects in one write. The second half proves that this test can see the fault."""
    ours: list[int] = []
    theirs: list[int] = []
    connection = await Connection.open(
        NatsSettings(), server.url, "ours", lambda arrived: ours.append(int(arrived.payload)), ours_fails
    )
    plain = Client()
    await plain.connect(server.url)

    async def callback(message: Msg) -> None:
        theirs.append(int(message.data))

    for subject in SUBJECTS:
        await connection.subscribe(subject, ours_fails)
        await plain.subscribe(subject, cb=callback)
    await connection.barrier()
    await plain.flush()

    writer.writer.write(
        b"".join(put(random.choice(SUBJECTS).encode(), b"%1800d" % number) for number in range(COUNT))
    )
    await until(lambda: len(ours) == len(theirs) == COUNT, "all arrive")

    assert ours == list(range(COUNT))
    assert sorted(theirs) == list(range(COUNT))
    assert theirs != list(range(COUNT)), "nats-py's callbacks keep order now: this design could be simpler"
    await connection.close()
    await plain.close()


def ours_fails(what: str) -> None:
    raise AssertionError(what)


async def test_commands_of_all_kinds_are_applied_in_the_order_of_the_wire(
    server: NatsServer, writer: Peer, tmp_path: Path
) -> None:
    """The whole way: read, decoded, applied."""
    start = json.loads((FIXTURES / "dea.start.minimal.json").read_bytes())
    staging = json.loads((FIXTURES / "staging.start.json").read_bytes())

    def make(number: int) -> bytes:
        app = str(number)
        subject, body, reply = random.choice(
            [
                ("dea.host1.start", {**start, "droplet": app}, b""),
                ("dea.stop", {"droplet": app}, b""),
                ("dea.update", {"droplet": app, "uris": []}, b""),
                ("dea.find.droplet", {"droplet": app}, b"box"),
                ("router.start", {"minimumRegisterIntervalInSeconds": number}, b""),
                ("staging.host1.start", {**staging, "app_id": app}, b"box"),
                ("staging.stop", {"app_id": app}, b""),
            ]
        )
        return put(subject.encode(), json.dumps(body).encode(), reply)

    def number_of(command: c.Command) -> int:
        match command:
            case c.RouterStartCommand(message):
                return int(message.interval_s or 0)
            case c.StageCommand(request, _):
                return int(request.app_id)
            case c.StopStagingCommand(stop):
                return int(stop.app_id)
            case c.RefuseStagingCommand(task_id, error, _):
                raise AssertionError(f"{task_id}: {error}")
            case _:
                return int(command.message.app)

    host = Host([server.url], tmp_path / "outbox")
    await host.run_until_connected()

    writer.writer.write(b"".join(make(number) for number in range(500)))
    await until(lambda: len(host.commands) >= 500, "all are applied")

    assert [number_of(command) for command in host.commands] == list(range(500))
    await host.stop()


async def test_a_message_that_was_not_handed_over_raises_the_alarm(
    server: NatsServer, writer: Peer, tmp_path: Path
) -> None:
    """The hand-over breaks for one message: it is told, and the client is not deaf for the next."""
    host = Host([server.url], tmp_path / "outbox")
    hand_over = host.bus._hand_over

    def breaks_once(arrived: Arrived) -> None:
        if arrived.payload == b'{"app_id":"lost"}':
            raise RuntimeError("a hand-over must never raise")
        hand_over(arrived)

    host.bus._hand_over = breaks_once  # type: ignore[method-assign]
    await host.run_until_connected()

    await writer.say("staging.stop", b'{"app_id":"lost"}')
    await writer.say("staging.stop", b'{"app_id":"next"}')

    await until(lambda: host.commands, "the next command")
    assert host.commands == [c.StopStagingCommand(m.StagingStop("next"))]
    await until(lambda: host.logged("bus_message_lost"), "the alarm")
    assert host.logged("bus_message_lost")[0]["subject"] == "staging.stop"
    assert host.connects == 1
    await host.stop()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe\x00",
        b'{"droplet": NaN}',
        b'{"droplet": 1e999}',
        b'{"droplet": ' + b"9" * 5_000 + b"}",
        b'{"droplet": "a", "states": ["NONSENSE"]}',
        b'{"droplet": "a", "indices": ' + b"[" * 100_000,
        b'{"droplet": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"droplet": "\\ud800 alone"}',
        b'{"droplet": "a"} {"droplet": "b"}',
    ],
    ids=range(12),
)
async def test_a_refused_message_costs_one_log_line(
    server: NatsServer, writer: Peer, tmp_path: Path, raw: bytes
) -> None:
    """And nothing else: the next command is carried out, over the same connection."""
    host = Host([server.url], tmp_path / "outbox")
    await host.run_until_connected()
    quiet = len(host.lines)

    await writer.say("dea.stop", raw)
    await writer.say("dea.stop", b'{"droplet": "next", "droplet": "twice"}')

    await until(lambda: host.commands, "the next command")
    assert [command.message.app for command in host.commands if isinstance(command, c.StopCommand)] == [
        "twice"
    ]
    refused = host.lines[quiet:]
    assert [line["event"] for line in refused] == ["bus_message_refused"]
    assert len(str(refused[0])) < 1_000
    assert host.connects == 1
    await host.stop()


def with_header(header: bytes) -> bytes:
    return b"HPUB dea.stop %d %d\r\n%b{}\r\n" % (len(header), len(header) + 2, header)


@pytest.mark.parametrize(
    "raw",
    [
        put(b"dea.stop", b"{}", b"\xff\xfe"),
        with_header(b"NATS/1.0 503 \xff\xff\xff\r\n\r\n"),
        with_header(b"NATS/1.0\r\n\r\n"),
        with_header(b"NATS/1.0\r\n\xff: \xff\r\n\r\n"),
    ],
    ids=["reply", "status", "no header", "header"],
)
async def test_a_subject_or_header_that_is_not_text_does_not_end_the_reading(
    server: NatsServer, writer: Peer, tmp_path: Path, raw: bytes
) -> None:
    """A reply subject or header that is no UTF-8 ended nats-py's read loop, and nobody noticed."""
    host = Host([server.url], tmp_path / "outbox")
    await host.run_until_connected()

    writer.writer.write(raw)
    await writer.say("staging.stop", b'{"app_id":"next"}')

    await until(lambda: c.StopStagingCommand(m.StagingStop("next")) in host.commands, "the next command")
    assert host.connects == 1
    await host.stop()


async def test_a_command_that_breaks_its_handler_costs_itself_only(
    server: NatsServer, writer: Peer, tmp_path: Path
) -> None:
    """The outermost frame of a message logs, and goes on."""
    host = Host([server.url], tmp_path / "outbox")
    done = asyncio.Event()

    def apply(command: c.Command) -> None:
        if command == c.StopStagingCommand(m.StagingStop("bad")):
            raise KeyError("a bug of ours")
        done.set()

    host.apply = apply
    await host.run_until_connected()

    await writer.say("staging.stop", b'{"app_id":"bad"}')
    await writer.say("staging.stop", b'{"app_id":"next"}')

    async with asyncio.timeout(20):
        await done.wait()
    assert [line["subject"] for line in host.logged("bus_command_failed")] == ["staging.stop"]
    await host.stop()
