"""A stop loses no request of a router, because TERM is sent after the router has received the unregister."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from driver import LOCAL_IP, App, Host, poll
from router_kit import Router
from servers import Relay

pytestmark = pytest.mark.bus
OpenHost = Callable[..., AbstractAsyncContextManager[Host]]

RATE_PER_S = 200


@asynccontextmanager
async def behind_relay(hosts: OpenHost, **settings: Any) -> AsyncIterator[tuple[Host, Relay, App, int]]:
    """An agent that reaches its bus through a relay, and an app of it that runs, with its port."""
    async with AsyncExitStack() as undo:
        host = await undo.enter_async_context(hosts(instance=settings))
        relay = Relay(lambda: host.bus_port)
        await relay.start()
        undo.push_async_callback(relay.close)
        host.settings["nats"]["servers"] = [relay.url.replace("nats://", "nats://garrison:p@")]
        await host.start_agent()
        app = host.make_app("shop")
        running = await host.run(app)
        yield host, relay, app, running["stats"]["port"]
        relay.passes.set()


async def test_no_term_before_the_unregister_has_been_received(hosts: OpenHost) -> None:
    """The server has it, which the agent knows from the answer to its barrier and from nothing else."""
    async with behind_relay(hosts, unregister_wait_s=30, drain_s=0) as (host, relay, app, port):
        relay.hold_at = b"router.unregister"
        await host.peer.say("dea.stop", {"droplet": app.id})
        await host.peer.wait_for("router.unregister")
        # a TERM would have ended it by then
        assert not await poll(lambda: host.running.log("instance_stopped", app=app.id), 0.7)
        assert "PORT" in await host.environment_of(port)

        relay.passes.set()

        await host.running.wait_log("instance_stopped", app=app.id)
        assert not host.running.log("bus_disconnected")


async def test_a_stop_over_a_restart_waits_for_its_unregister_too(hosts: OpenHost) -> None:
    """The next agent goes on with the stop; routers must have the unregister before the container goes."""
    async with behind_relay(hosts, unregister_wait_s=30, drain_s=0) as (host, relay, app, port):
        relay.hold_at = b"router.unregister"
        await host.stop(app)
        await host.wait_remembered('"STOPPING"')
        await host.stop_agent(signal.SIGKILL)
        since = host.peer.mark
        relay.passes.set()

        await host._spawn_agent("")

        await host.peer.wait_for("router.unregister", since=since)
        assert not await poll(lambda: host.running.log("instance_stopped", app=app.id), 0.7)
        assert "PORT" in await host.environment_of(port)

        relay.passes.set()
        relay.hold_at = b""
        await host.wait_gone(app)
        await host.wait_depot_empty()
        assert host.peer.on("droplet.exited") == []


async def test_a_bus_that_is_away_delays_no_stop(hosts: OpenHost) -> None:
    """An unregister that nobody can receive is not waited for."""
    async with behind_relay(hosts, unregister_wait_s=25, drain_s=0) as (host, relay, app, _):
        relay.is_open = False
        await relay.close()
        await host.running.wait_log("bus_disconnected")

        assert await host.stop_agent(signal.SIGTERM) == 0

        (stopped,) = host.running.log("instance_stopped", app=app.id)
        assert stopped["after_s"] < 10


async def test_requests_in_flight_end_before_the_term(hosts: OpenHost) -> None:
    """Within the drain time; the router has sent them before it received the unregister."""
    async with behind_relay(hosts, drain_s=4) as (host, _, app, port):
        reader, writer = await asyncio.open_connection(LOCAL_IP, port)
        await host.peer.say("dea.stop", {"droplet": app.id})
        await host.peer.wait_for("router.unregister")
        await asyncio.sleep(1)  # what the app needs for its answer

        writer.write(b"GET / HTTP/1.0\r\n\r\n")

        answer = (await reader.read()).decode()
        writer.close()
        assert "PORT=" in answer
        assert not host.running.log("instance_stopped", app=app.id)
        await host.wait_gone(app)


async def test_forty_instances_become_one_and_no_request_is_lost(hosts: OpenHost) -> None:
    """Under 200 requests a second; an unregister is one of many, so those behind the first batch wait longest."""
    limits = {"limits": {"mem": 32, "disk": 64}}
    async with hosts(resources={"memory_mb": 8192, "disk_mb": 32768}) as host:
        await host.start_agent()
        app = host.make_app("shop")
        await host.peer.burst([host.start_word(app, index, **limits) for index in range(40)])
        router = Router(host, app.uris[0])
        assert await host.peer.until(lambda: router.backends == 40, 60)

        def is_over() -> bool:
            return len(host.running.log("instance_stopped", app=app.id)) == 39 and router.backends == 1

        asked = asyncio.create_task(router.load(RATE_PER_S, is_over))
        await host.peer.until(lambda: router.answers.total() > RATE_PER_S, 10)
        before = router.answers.total()
        await host.stop(app, indices=list(range(1, 40)))
        await asyncio.wait_for(asked, 60)

        assert router.answers == {"200": router.answers.total()}
        assert router.answers.total() > before
