"""What is sent when a connection begins, and at the agent's end (docs/bus.md, "Farewell")."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from servers import (
    NatsServer,
    kept_files,
    route,
    staged,
    until,
)
from servers_fixtures import Listen, MakeHost

from agent.bus import commands as c
from agent.bus import messages as m

pytestmark = pytest.mark.bus


async def test_after_each_connect_everything_is_published_in_its_order(
    server: NatsServer, make_host: MakeHost, listen: Listen
) -> None:
    """Kept events, routes that went, heartbeat, adverts, registers; then the routers are asked for."""
    host = make_host()
    advert = m.Advertise("host1", ("s",), 1, 1, {}, {"zone": "z"})

    def publish_anew() -> None:
        host.bus.publish(m.Heartbeat((), "host1"))
        host.bus.publish(advert)
        host.bus.publish(m.StagingAdvertise("host1", ("s",), 1, 1))
        host.bus.publish(route(m.RouterRegister, 61002))

    host.at_connect = publish_anew
    await host.run_until_connected()
    host.bus.publish_event(route(m.RouterUnregister))
    await until(lambda: not host.bus.unsent, "the unregister is told")
    await server.kill()
    await until(lambda: not host.bus.connected, "the death is seen")
    host.bus.publish(advert)  # an advert is never stored
    host.bus.publish_event(staged(1), reply_to="box")
    host.bus.publish_event(m.DeaShutdown("host1", "10.0.0.1", "0.0.1", {}))
    await host.stop()
    await server.start()
    peer = await listen(">")

    host.run()

    await until(lambda: peer.on("router.greet"), "the greeting")
    assert [subject for subject, _, _ in peer.heard] == [
        "box", "dea.shutdown", "router.unregister", "dea.heartbeat", "dea.advertise", "staging.advertise",
        "router.register", "router.greet",
    ]  # fmt: skip


async def test_a_router_that_answers_the_greeting_counts_as_one_that_starts(
    make_host: MakeHost, listen: Listen
) -> None:
    """Without a router the server's 503 is no answer."""
    host = make_host()
    await host.run_until_connected()
    host.bus.publish_event(staged(1), reply_to="box")
    await until(lambda: not host.bus.unsent, "what was said behind the greeting is told")
    assert host.commands == []
    await host.stop()
    router = await listen("router.greet")
    host.run()
    await until(lambda: router.heard, "the greeting")

    await router.say(router.heard[0][1], b'{"minimumRegisterIntervalInSeconds":5}')

    await until(lambda: host.commands, "it is heard")
    assert host.commands == [c.RouterStartCommand(m.RouterStart(5))]


async def test_unregisters_are_repeated_to_a_router_that_starts(make_host: MakeHost, listen: Listen) -> None:
    """Whoever has host and port by then; but not what is registered now."""
    host = make_host()
    await host.run_until_connected()
    host.bus.publish_event(route(m.RouterUnregister, 61001, "a", "b"))
    host.bus.publish_event(route(m.RouterUnregister, 61002, "c"))
    host.bus.publish(route(m.RouterRegister, 61001, "new", "b", owner="p2"))
    host.bus.publish(route(m.RouterRegister, 61002, "c"))
    await until(lambda: not host.bus.unsent, "all is told")
    peer = await listen("router.unregister")

    host.bus.repeat_unregisters()

    await until(lambda: peer.heard, "repeated")
    await peer.flush()
    assert peer.on("router.unregister") == [m.encode(route(m.RouterUnregister, 61001, "a"))]


@pytest.mark.parametrize("bus_is", ["up", "gone", "stalled", "back after a second"])
async def test_a_farewell_ends_in_its_time(
    server: NatsServer,
    make_host: MakeHost,
    listen: Listen,
    tmp_path: Path,
    bus_is: str,
) -> None:
    """201 events: as soon as the server has them, else at the time-out, and what is left stays for the next agent."""
    host = make_host()
    await host.run_until_connected()
    peer = await listen("box")
    if bus_is == "stalled":
        server.stall()
    elif bus_is != "up":
        await server.kill()
        await until(lambda: not host.bus.connected, "the death is seen")
    for number in range(201):
        host.bus.publish_event(staged(number), reply_to="box")

    all_leave = bus_is in ("up", "back after a second")
    timeout_s = 300.0 if all_leave else 3.0
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(host.bus.farewell(timeout_s))
        if bus_is == "back after a second":
            await asyncio.sleep(1)
            await server.start()
    took_s = time.monotonic() - began
    print(f"{bus_is}: {took_s * 1e3:.0f} ms")

    assert not host.bus.connected
    if all_leave:
        assert kept_files(tmp_path) == []
        assert took_s < timeout_s / 2, "it waited for the end of its time"
    else:
        assert len(kept_files(tmp_path)) == 201
        assert timeout_s - 0.1 < took_s < timeout_s * 10
    if bus_is == "up":
        await until(lambda: len(peer.heard) == 201, "all arrived")
    if bus_is == "stalled":
        server.resume()


async def test_nothing_is_published_after_the_farewell(
    server: NatsServer, make_host: MakeHost, listen: Listen
) -> None:
    """The loop does not connect again: an advert of an agent that ends would draw new apps to it."""
    host = make_host()
    await host.run_until_connected()
    peer = await listen("dea.*")
    host.bus.publish_event(m.DeaShutdown("host1", "10.0.0.1", "0.0.1", {}))
    host.bus.publish(m.Heartbeat((), "host1"))

    await host.bus.farewell()

    await until(lambda: len(peer.heard) == 2, "the last words")
    connecting = next(task for task in asyncio.all_tasks() if task.get_name() == "bus-connect")
    await asyncio.wait({connecting}, timeout=10)
    assert connecting.done()
    assert host.connects == 1
