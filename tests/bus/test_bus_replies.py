"""Staging replies whose arrival is unknown: their receiver counts replies, and must count correctly whatever was lost.

A position stands for a meaning: the first message in an inbox is the first reply, the next one the second, and after it nobody listens.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from servers import (
    Host,
    NatsServer,
    Relay,
    first_reply,
    kept_files,
    second_reply,
    staged,
    until,
)
from servers_fixtures import Listen, MakeHost

from agent.bus import messages as m

pytestmark = pytest.mark.bus
FAILED = pytest.mark.parametrize("failed", [False, True], ids=["success", "failure"])


@pytest.fixture
async def relay(server: NatsServer, stack: AsyncExitStack) -> Relay:
    one = Relay(lambda: server.port)
    stack.push_async_callback(one.close)
    await one.start()
    return one


async def lost_between(relay: Relay, host: Host) -> None:
    """Whatever is on the way is lost, and the connection with it; then all is as before."""
    await until(lambda: not host.bus.connected, "the silence is noticed")
    relay.answers = relay.hears = True
    await until(lambda: host.bus.connected, "connected again")


async def host_behind(relay: Relay, stack: AsyncExitStack, tmp_path: Path) -> Host:
    host = Host([relay.url], tmp_path / "outbox")
    stack.push_async_callback(host.stop)
    await host.run_until_connected()
    return host


@FAILED
@pytest.mark.parametrize("lost", ["the reply", "its acknowledgement"])
async def test_a_first_reply_whose_arrival_is_unknown_is_not_sent_again(
    relay: Relay, stack: AsyncExitStack, listen: Listen, tmp_path: Path, lost: str, failed: bool
) -> None:
    """The second is then sent twice: it counts in the second place, and does no harm in the first."""
    peer = await listen("box")
    host = await host_behind(relay, stack, tmp_path)
    relay.answers, relay.hears = False, lost != "the reply"
    host.bus.publish_event(first_reply(1), reply_to="box")
    await lost_between(relay, host)

    host.bus.publish_event(second_reply(1, failed=failed), reply_to="box")

    # the file of an event is written a moment after it was handed over: none is there before, either
    await until(lambda: len(peer.on("box")) >= 2, "the second arrives")
    await until(lambda: not kept_files(tmp_path), "all is known to have arrived")
    await peer.flush()
    first, second = m.encode(first_reply(1)), m.encode(second_reply(1, failed=failed))
    assert peer.on("box") == [*([] if lost == "the reply" else [first]), second, second]


@FAILED
async def test_a_server_that_stalls_between_the_replies(
    server: NatsServer, make_host: MakeHost, listen: Listen, tmp_path: Path, failed: bool
) -> None:
    """It may have the first reply when it goes on, or not: the receiver counts right in both cases."""
    peer = await listen("box")
    host = make_host()
    await host.run_until_connected()
    server.stall()
    host.bus.publish_event(first_reply(1), reply_to="box")
    await until(lambda: not host.bus.connected, "the silence is noticed")
    host.bus.publish_event(second_reply(1, failed=failed), reply_to="box")
    server.resume()

    await until(lambda: len(peer.on("box")) >= 2, "the second arrives")
    await until(lambda: not kept_files(tmp_path), "all is known to have arrived")
    await peer.flush()
    counted_first, counted_second = peer.on("box")[:2]
    second = m.encode(second_reply(1, failed=failed))
    assert counted_first in (m.encode(first_reply(1)), second)
    assert counted_second == second


@FAILED
async def test_a_second_reply_that_is_on_its_way_when_the_first_becomes_unknown_is_sent_twice(
    relay: Relay, stack: AsyncExitStack, listen: Listen, tmp_path: Path, failed: bool
) -> None:
    """Both leave together and nothing of it arrives."""
    peer = await listen("box")
    host = await host_behind(relay, stack, tmp_path)
    relay.answers = relay.hears = False
    host.bus.publish_event(first_reply(1), reply_to="box")
    host.bus.publish_event(second_reply(1, failed=failed), reply_to="box")
    await lost_between(relay, host)

    await until(lambda: len(peer.on("box")) >= 2, "the second arrives, twice")
    await until(lambda: not kept_files(tmp_path), "all is known to have arrived")
    await peer.flush()
    assert peer.on("box") == [m.encode(second_reply(1, failed=failed))] * 2


def grown(tmp_path: Path, count: int) -> bool:
    return len(kept_files(tmp_path)) > count


async def test_a_first_reply_that_a_former_agent_left_counts_as_unknown(
    server: NatsServer, make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """Over any number of agents, until its second reply has arrived."""
    await server.kill()
    for told in (first_reply(1), staged(2)):
        before = kept_files(tmp_path)
        host = make_host()
        host.run()
        host.bus.publish_event(told, reply_to="box")
        await until(partial(grown, tmp_path, len(before)), "the outbox has it")
        await host.stop()
    await server.start()
    peer = await listen("box")

    await make_host().run_until_connected()

    await until(lambda: not kept_files(tmp_path), "all is known to have arrived")
    await peer.flush()
    assert peer.on("box") == [m.encode(staged(2))] * 2


@pytest.mark.parametrize("is_away", [False, True], ids=["connected", "away"])
async def test_each_reply_comes_once_where_nothing_is_in_doubt(
    relay: Relay, stack: AsyncExitStack, listen: Listen, tmp_path: Path, is_away: bool
) -> None:
    """Also when both were waiting for the bus."""
    peer = await listen("box")
    relay.is_open = not is_away
    host = Host([relay.url], tmp_path / "outbox")
    stack.push_async_callback(host.stop)
    host.run()
    if not is_away:
        await until(lambda: host.bus.connected, "connected")
    host.bus.publish_event(first_reply(1), reply_to="box")
    host.bus.publish_event(second_reply(1, failed=False), reply_to="box")
    relay.is_open = True

    await until(lambda: len(peer.on("box")) >= 2, "both arrive")
    await until(lambda: not kept_files(tmp_path), "all is known to have arrived")
    await peer.flush()
    assert peer.on("box") == [m.encode(first_reply(1)), m.encode(second_reply(1, failed=False))]
