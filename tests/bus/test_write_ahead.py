"""Records are written before messages are published: after a kill at any point, the next agent contradicts no published message."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from driver import App, Host

pytestmark = pytest.mark.bus
OpenHost = Callable[..., AbstractAsyncContextManager[Host]]
SMALL = {"mem": 32, "disk": 64}


async def dies(host: Host) -> None:
    assert await host.running.wait_exited() == -signal.SIGKILL


async def spawn_until_started(host: Host) -> None:
    """An agent that is leaving does not advertise itself."""
    agent = await host._spawn_agent("")
    await agent.wait_log("agent_started")


def told_of(host: Host, app: App, subject: str) -> list[bytes]:
    return [
        one.payload for one in host.peer.on(subject) if one.body.get("droplet", one.body.get("app")) == app.id
    ]


@pytest.mark.parametrize(
    "point",
    ["record=CRASHED", "outbox=router.unregister", "outbox=droplet.exited", "published=droplet.exited"],
)
async def test_a_crash_is_published_in_the_same_bytes(hosts: OpenHost, point: str) -> None:
    """Once or more, but always the same: another timestamp would count as another crash."""
    async with hosts() as host:
        await host.start_agent(hold=point)
        app = host.make_app("shop")
        running = await host.run(app, limits=SMALL)
        host.hold_flag.touch()
        await host.ask_app(running["stats"]["port"], "exit 3")
        await dies(host)

        await host.start_agent()

        await host.peer.wait_for("droplet.exited")
        await host.wait_state(app, "CRASHED")
        await host.wait_depot_empty()
        await host.peer.flush()
        told = told_of(host, app, "droplet.exited")
        assert len(set(told)) == 1, told
        exited, unregistered = host.peer.on("droplet.exited")[0], host.peer.on("router.unregister")[0]
        assert (exited.body["instance"], exited.body["exit_status"]) == (running["instance"], 3)
        assert unregistered.number < exited.number
        assert unregistered.body["port"] == running["stats"]["port"]


@pytest.mark.parametrize(
    "point", ["record=STOPPING", "outbox=router.unregister", "published=router.unregister"]
)
async def test_a_stop_is_not_forgotten(hosts: OpenHost, point: str) -> None:
    """Its routes go, it goes, and nobody hears of a crash."""
    async with hosts() as host:
        await host.start_agent(hold=point)
        app = host.make_app("shop")
        await host.run(app, limits=SMALL)
        host.hold_flag.touch()
        await host.stop(app)
        await dies(host)
        since = host.peer.mark

        await host.start_agent()

        await host.wait_gone(app)
        await host.wait_depot_empty()
        await host.peer.wait_for("router.unregister")
        assert host.peer.on("router.register", since) == []
        assert host.peer.on("droplet.exited") == []


@pytest.mark.parametrize(
    "point", ["record=BORN", "record=STARTING", "record=RUNNING", "published=router.register"]
)
async def test_a_start_is_not_forgotten(hosts: OpenHost, point: str) -> None:
    """One instance, under the id it was told by; its routes lead to it, and nobody hears of a failure."""
    async with hosts() as host:
        await host.start_agent(hold=point)
        app = host.make_app("shop")
        host.hold_flag.touch()
        await host.start(app, instance_id="the-first", limits=SMALL)
        await dies(host)
        containers = host.containers() if point == "published=router.register" else []

        await host.start_agent()

        running = await host.wait_state(app, "RUNNING")
        assert running["instance"] == "the-first"
        registered = {one.body["port"] for one in host.peer.on("router.register")}
        assert registered == {running["stats"]["port"]}
        assert not containers or host.containers() == containers
        assert len(host.containers()) == 1
        assert host.peer.on("droplet.exited") == []


@pytest.mark.parametrize(
    "point", ["record=RUNNING", "outbox=router.unregister", "published=router.unregister"]
)
async def test_a_route_that_an_update_took_is_taken_back(hosts: OpenHost, point: str) -> None:
    """The next agent registers what is left, and the router has been told of what is not."""
    async with hosts() as host:
        await host.start_agent(hold=point)
        app = host.make_app("shop", uris=("old.example.com", "kept.example.com"))
        running = await host.run(app, limits=SMALL)
        host.hold_flag.touch()
        await host.peer.say("dea.update", {"droplet": app.id, "uris": ["kept.example.com"]})
        await dies(host)
        since = host.peer.mark

        await host.start_agent()

        registered = await host.peer.wait_for("router.register", since=since)
        assert registered.body["uris"] == ["kept.example.com"]
        unregistered = await host.peer.wait_for("router.unregister")
        assert unregistered.body["uris"] == ["old.example.com"]
        assert unregistered.body["port"] == running["stats"]["port"]


async def test_an_evacuation_goes_on_after_a_kill(hosts: OpenHost) -> None:
    """No adverts, its apps are leaving, and it ends when they are gone; the agent after that one serves again."""
    async with hosts() as host:
        await host.start_agent()
        app = host.make_app("shop")
        running = await host.run(app, limits=SMALL)
        host.running.signal(signal.SIGUSR2)
        await host.wait_state(app, "EVACUATING")
        await host.wait_remembered('"evacuating"')
        await host.stop_agent(signal.SIGKILL)
        since = host.peer.mark

        await spawn_until_started(host)

        found = await host.wait_state(app, "EVACUATING")
        assert (found["state"], found["instance"]) == ("EVACUATING", running["instance"])
        beat = await host.peer.wait_for("dea.heartbeat", lambda body: body["droplets"] != [], since=since)
        assert [one["state"] for one in beat.body["droplets"]] == ["EVACUATING"]
        await host.stop(app)
        assert await host.running.wait_exited() == 0
        assert host.peer.on("dea.advertise", since) == []
        assert host.peer.on("droplet.exited") == []
        await host.start_agent()


async def test_leaving_the_pool_outlives_a_kill(hosts: OpenHost) -> None:
    """Who placed on this host was told that it is closed."""
    async with hosts() as host:
        await host.start_agent()
        host.running.signal(signal.SIGUSR1)
        await host.peer.wait_for("dea.shutdown")
        await host.wait_remembered('"out of pool"')
        await host.stop_agent(signal.SIGKILL)
        since = host.peer.mark

        await spawn_until_started(host)

        await host.peer.wait_for("dea.heartbeat", since=since)
        await host.peer.wait_for("dea.heartbeat", since=host.peer.mark)
        assert host.peer.on("dea.advertise", since) == []


async def test_the_first_answer_after_a_restart_has_what_an_app_uses(hosts: OpenHost) -> None:
    """Not zeros until the next measurement, which may be long."""
    async with hosts(intervals={"stats": 3600}) as host:
        await host.start_agent()
        app = host.make_app("shop")
        before = await host.run(app, limits=SMALL)
        await host.stop_agent(signal.SIGKILL)

        await host.start_agent()

        (after,) = await host.find(app, include_stats=True)
        assert after["stats"]["usage"]["mem"] > 0
        assert after["stats"]["usage"]["disk"] >= before["stats"]["usage"]["disk"] > 0
