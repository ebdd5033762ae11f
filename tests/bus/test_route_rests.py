"""A host port gets no new app while a router may still have a route to the former one (docs/protocol.md, "Routes")."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest
from driver import Host
from driver import poll as look
from router_kit import Router
from servers import Host as BusHost
from servers import NatsServer, Relay, kept_files, route, until
from servers_fixtures import Listen, MakeHost

from agent.bus import messages as m
from agent.bus.outbox import Kept, Outbox

pytestmark = pytest.mark.bus
OpenHost = Callable[..., AbstractAsyncContextManager[Host]]

NO_PORT = "Not enough port resource available."
ONE_PORT = {"pool_start_port": 20_000, "pool_size": 1}


async def refused(host: Host, name: str) -> str:
    """Why a start of a new app was refused."""
    app = host.make_app(name)
    await host.start(app)
    exited = await host.peer.wait_for("droplet.exited", lambda body: body["droplet"] == app.id)
    return str(exited.body["exit_description"])


async def test_with_no_rested_port_a_start_is_refused_until_one_has_rested(hosts: OpenHost) -> None:
    """Never given the one whose route may still stand; the port itself comes back."""
    async with hosts(port={**ONE_PORT, "rest_s": 20}) as host:
        await host.start_agent()
        app = host.make_app("first")
        running = await host.run(app)
        await host.stop(app)
        began_s = time.monotonic()
        await host.peer.wait_for("router.unregister")
        await host.wait_gone(app)

        assert await refused(host, "second") == NO_PORT

        third = host.make_app("third")
        while not (await host.find(third, states=["RUNNING"])):
            await host.start(third)
            await look(lambda: False, 1)
            assert time.monotonic() - began_s < 120
        assert time.monotonic() - began_s >= 20
        (found,) = await host.find(third, states=["RUNNING"], include_stats=True)
        assert found["stats"]["port"] == running["stats"]["port"]


async def test_a_crash_while_the_bus_is_away_is_remembered_by_the_next_agent(hosts: OpenHost) -> None:
    """The bus is away, the app crashes, the agent is killed: the next one takes the route back before it gives the port away."""
    async with hosts(port={**ONE_PORT, "rest_s": 60}) as host, AsyncExitStack() as undo:
        relay = Relay(lambda: host.bus_port)
        await relay.start()
        undo.push_async_callback(relay.close)
        host.settings["nats"]["servers"] = [relay.url.replace("nats://", "nats://garrison:p@")]
        await host.start_agent()
        app = host.make_app("first")
        router = Router(host, app.uris[0])
        port = (await host.run(app))["stats"]["port"]
        assert router.backends == 1
        relay.is_open = False
        await relay.close()
        await host.running.wait_log("bus_disconnected")
        await host.ask_app(port, "exit 3")
        await host.running.wait_log("instance_exited", app=app.id)
        await host.wait_remembered("CRASHED")
        await host.stop_agent(signal.SIGKILL)
        host.settings["nats"]["servers"] = [f"nats://garrison:p@127.0.0.1:{host.bus_port}"]

        await host.start_agent()

        await host.peer.wait_for("router.unregister", lambda body: body["app"] == app.id)
        assert router.backends == 0
        assert await refused(host, "second") == NO_PORT


async def test_a_router_that_was_cut_off_learns_what_was_taken_back_meanwhile(hosts: OpenHost) -> None:
    """Also when the port has a new owner by then: a route is uri and host:port."""
    async with hosts(port={**ONE_PORT, "rest_s": 0.5}) as host:
        await host.start_agent()
        first, second = host.make_app("first"), host.make_app("second")
        router = Router(host, first.uris[0])
        await host.run(first)
        assert router.backends == 1  # its last look for now
        await host.stop(first)
        await host.wait_gone(first)
        while not await host.find(second, states=["RUNNING"]):
            await host.start(second)
            await look(lambda: False, 0.5)
        (running,) = await host.find(second, states=["RUNNING"], include_stats=True)

        await router.come_back()

        await host.peer.until(lambda: router.find(second.uris[0]), 20)
        assert [one.port for one in router.find(second.uris[0])] == [running["stats"]["port"]]
        assert router.backends == 0


# The rest itself, by the bus alone.


async def test_a_bus_that_is_away_longer_than_a_rest_begins_it_when_it_is_back(
    server: NatsServer, make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """Not when the app ended: no router could receive it before."""
    host = make_host(port_rest_s=3.0)
    await host.run_until_connected()
    await server.kill()
    await until(lambda: not host.bus.connected, "the death is seen")
    told_s = time.monotonic()
    host.bus.publish_event(route(m.RouterUnregister, 61001))
    await until(lambda: time.monotonic() - told_s > 4, "longer than a rest")
    assert host.bus.port_rests(61001)
    await server.start()
    peer = await listen("router.unregister")
    await until(lambda: peer.heard, "it is received")
    received_s = time.monotonic()

    await until(lambda: not host.bus.port_rests(61001), "it has rested")

    assert time.monotonic() - received_s > 2.5


async def test_the_rest_begins_anew_when_a_router_starts(make_host: MakeHost, listen: Listen) -> None:
    """It was cut off, and keeps its routes for as long as it does from then on; the longest that any announced counts."""
    host = make_host(port_rest_s=0.1)
    host.bus.set_prune_threshold(4.0)
    await host.run_until_connected()
    host.bus.publish_event(route(m.RouterUnregister, 61001))
    await until(lambda: not host.bus.unsent, "it has passed the barrier")
    first_s = time.monotonic()
    peer = await listen("router.unregister")
    await until(lambda: time.monotonic() - first_s > 2, "half of its rest")

    host.bus.repeat_unregisters()

    await until(lambda: peer.heard, "repeated")
    repeated_s = time.monotonic()
    await until(lambda: not host.bus.port_rests(61001), "it has rested")
    assert time.monotonic() - repeated_s > 3.5


async def test_what_was_taken_back_is_remembered_over_restarts(
    make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """First resting, then rested: repeated in both cases, until it is registered again."""

    async def next_agent(host: BusHost) -> BusHost:
        await host.stop()
        return make_host(port_rest_s=1.0)

    host = make_host(port_rest_s=1.0)
    await host.run_until_connected()
    host.bus.publish_event(route(m.RouterUnregister, 61001, "a"))
    await until(lambda: kept_files(tmp_path) == ["000000000001.repeat"], "it has passed the barrier")

    host = await next_agent(host)
    assert host.bus.port_rests(61001)
    peer = await listen("router.unregister")
    await host.run_until_connected()
    await until(lambda: len(peer.heard) == 1, "repeated by the second agent")
    await until(lambda: kept_files(tmp_path) == ["000000000001.rested"], "it has rested")

    host = await next_agent(host)
    assert not host.bus.port_rests(61001)
    await host.run_until_connected()
    await until(lambda: len(peer.heard) == 2, "repeated by the third agent")
    host.bus.publish(route(m.RouterRegister, 61001, "a", owner="p2"))

    await until(lambda: kept_files(tmp_path) == [], "nothing is left to repeat")
    assert set(peer.on("router.unregister")) == {m.encode(route(m.RouterUnregister, 61001, "a"))}


async def test_an_unregister_that_no_server_takes_holds_no_port(make_host: MakeHost, tmp_path: Path) -> None:
    """It never passes a barrier, so its rest would have no end."""
    host = make_host(port_rest_s=60.0)
    await host.run_until_connected()
    host.bus.publish_event(route(m.RouterUnregister, 61001, "x" * (1 << 20)))
    assert host.bus.port_rests(61001)
    await until(lambda: kept_files(tmp_path) == ["000000000001.damaged"], "it is set aside")
    await until(lambda: not host.bus.port_rests(61001), "its port is free")


async def test_a_route_that_an_older_agent_took_back_is_known_by_its_one_spelling(
    make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """It kept them as they came; a register of the same route, spelt as today, ends the repeats."""
    old = Outbox(tmp_path / "outbox")
    payload = m.encode(route(m.RouterUnregister, 61001, "Shop.example.com/"))
    old.write(old.add(Kept("router.unregister", payload)))
    peer = await listen("router.unregister")
    host = make_host()
    await host.run_until_connected()
    await until(lambda: peer.heard, "sent as it was kept")
    assert peer.on("router.unregister") == [payload]
    await until(lambda: kept_files(tmp_path) == ["000000000001.repeat"], "it has passed the barrier")

    host.bus.publish(route(m.RouterRegister, 61001, "shop.example.com"))

    assert kept_files(tmp_path) == []
    assert not host.bus.port_rests(61001)


async def test_a_router_that_starts_again_and_again_is_answered_without_a_queue_that_grows(
    make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """Both kinds of repeats: what is still on its way is not queued again."""
    old = Outbox(tmp_path / "outbox")
    for number in range(4):
        old.write(old.add(Kept("router.unregister", m.encode(route(m.RouterUnregister, 61001 + number)))))
        old.keep(number + 1)
    old.rest(1)
    old.rest(2)
    peer = await listen("router.unregister")
    host = make_host(port_rest_s=60.0)
    await host.run_until_connected()
    await until(lambda: len(peer.heard) == 4, "repeated at the connect")

    for _ in range(100):  # no turn of the loop between them
        host.bus.repeat_unregisters()

    await until(lambda: len(peer.heard) == 8, "repeated once more")
    await peer.flush()
    assert sorted(peer.on("router.unregister")[4:]) == sorted(set(peer.on("router.unregister")))
