"""A restart of the agent: apps are not affected, and no message is published twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from driver import Host, poll
from driver_apps import make_buildpack, make_package

pytestmark = pytest.mark.bus


async def detach(host: Host) -> None:
    """`garrison detach`, as an operator types it."""
    words = ["-m", "agent", "detach", "--config", str(host.dir / "config.yml")]
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    assert await host.running.wait_exited() == 0


async def kill(host: Host) -> None:
    await host.stop_agent(signal.SIGKILL)


OpenHost = Callable[..., AbstractAsyncContextManager[Host]]
WAYS = pytest.mark.parametrize("leave", [detach, kill])
Leave = Callable[[Host], Awaitable[None]]


@WAYS
async def test_the_next_agent_takes_the_apps_over_as_they_are(host: Host, leave: Leave) -> None:
    """The same host to its peers, the same instances, their routes at once, and not a word about an end."""
    app = host.make_app("shop")
    before = [await host.run(app, index) for index in (0, 1)]
    dea, ports = host.dea, [one["stats"]["port"] for one in before]
    since = host.peer.mark
    await leave(host)
    assert [(await host.environment_of(port))["PORT"] for port in ports] == [str(port) for port in ports]

    await host.start_agent()

    assert host.dea == dea
    await host.peer.until(lambda: len(host.peer.on("router.register", since)) >= len(ports), 20)
    routes = [(one.body["app"], one.body["port"]) for one in host.peer.on("router.register", since)]
    assert sorted(set(routes)) == sorted((app.id, port) for port in ports)
    after = sorted(await host.find(app), key=lambda one: int(one["index"]))
    kept = ("dea", "instance", "version", "index", "state", "state_timestamp")
    assert [[one[key] for key in kept] for one in after] == [[one[key] for key in kept] for one in before]
    assert host.peer.on("droplet.exited") == []
    assert host.peer.on("router.unregister") == []
    assert host.peer.on("dea.shutdown") == []


@WAYS
async def test_the_output_and_the_end_of_an_app_that_was_taken_over_are_seen(
    host: Host, leave: Leave
) -> None:
    """Output from its first byte, whoever asks; and its exit status."""
    app = host.make_app("shop")
    running = await host.run(app)
    port = running["stats"]["port"]
    await leave(host)
    await host.start_agent()

    said = await host.logs_of(running["instance"])
    await host.ask_app(port, "exit 3")
    exited = await host.peer.wait_for("droplet.exited")

    assert f"listening on {port}" in said
    assert (exited.body["instance"], exited.body["exit_status"]) == (running["instance"], 3)
    assert exited.body["exit_description"] == "app instance exited"
    await host.wait_state(app, "CRASHED")


@WAYS
async def test_the_exit_of_an_app_that_ended_without_an_agent_is_published_once(
    host: Host, leave: Leave
) -> None:
    """With its true status, by the next agent; and not again by the one after."""
    app = host.make_app("shop")
    running = await host.run(app)
    await leave(host)
    await host.ask_app(running["stats"]["port"], "exit 9")

    for _ in range(2):
        await host.start_agent()
        await host.wait_state(app, "CRASHED")
        await host.peer.wait_for("droplet.exited")
        await leave(host)

    (exited,) = host.peer.on("droplet.exited")
    assert (exited.body["instance"], exited.body["exit_status"]) == (running["instance"], 9)
    repeats = {one.payload for one in host.peer.on("router.unregister")}  # for routers that were away
    assert [json.loads(payload)["app"] for payload in repeats] == [app.id]
    await host.start_agent()


@WAYS
async def test_a_start_is_gone_on_with_where_it_stood(host: Host, leave: Leave) -> None:
    """Its job runs and has not opened its port: the same process becomes healthy under the next agent."""
    app = host.make_app("slow")
    await host.start(app, start_command="sleep 4; exec ./listener")
    await host.running.wait_log("instance_spawned", app=app.id)
    (handle,) = host.containers()
    pid = host.pid_of_container(handle)
    await leave(host)

    await host.start_agent()

    running = await host.wait_state(app, "RUNNING")
    assert host.containers() == [handle]
    assert host.pid_of_container(handle) == pid
    routes = [one.body["port"] for one in host.peer.on("router.register")]
    assert routes == [running["stats"]["port"]]
    assert host.peer.on("droplet.exited") == []


async def test_a_start_that_was_resumed_has_the_time_that_is_left(host: Host) -> None:
    """A restart of the agent gives an app that opens no port no second chance."""
    app = host.make_app("deaf")
    asked = time.time()
    await host.start(app, start_command="sleep 60", health_check_timeout=8)
    await host.running.wait_log("instance_spawned", app=app.id)
    began = time.time()
    await asyncio.sleep(3)
    await kill(host)

    await host.start_agent()

    exited = await host.peer.wait_for("droplet.exited")
    assert exited.body["exit_description"] == "failed to accept connections within health check timeout"
    assert exited.at_s - asked >= 8
    assert exited.at_s - began < 10.5
    await host.wait_depot_empty()


@pytest.mark.parametrize(
    ("leave", "phase"),
    [(detach, "unpacking"), (kill, "unpacking"), (kill, "creating"), (kill, "spawned")],
)
async def test_a_start_is_finished_by_the_next_agent(hosts: OpenHost, leave: Leave, phase: str) -> None:
    """Wherever it stood: one instance, under its first id, and no word of a failure."""
    async with hosts() as host:
        await host.start_agent(hold=phase)
        app = host.make_app("shop")
        await host.start(app, instance_id="the-first")
        assert await poll(host.hold_flag.exists, 20)
        await leave(host)
        host.hold_flag.unlink(missing_ok=True)

        await host.start_agent()

        running = await host.wait_state(app, "RUNNING")
        assert (running["instance"], len(await host.find(app))) == ("the-first", 1)
        assert len(host.containers()) == 1
        assert host.peer.on("droplet.exited") == []


async def test_a_start_from_long_ago_is_published_as_failed(host: Host) -> None:
    """An agent that was away for hours does not start what its controller has long placed elsewhere."""
    app = host.make_app("late")
    with host.files.stalled(app.path) as reached:
        await host.start(app)
        await asyncio.wait_for(reached.wait(), 20)
        await host.wait_remembered('"STARTING"')
        await kill(host)
    (record,) = (host.base_dir / "db" / "instances").glob("*.json")
    saved = json.loads(record.read_text())
    record.write_text(json.dumps(saved | {"state_since_s": saved["state_since_s"] - 3600}))

    await host.start_agent()

    exited = await host.peer.wait_for("droplet.exited")
    assert (exited.body["exit_status"], exited.body["exit_description"]) == (-1, "failed to start")
    await host.wait_depot_empty()


async def test_a_stop_that_an_agent_did_not_finish_is_finished_by_the_next(host: Host) -> None:
    """What was asked to go goes, and nobody hears of a crash."""
    app = host.make_app("stubborn")
    running = await host.run(app)
    await host.ask_app(running["stats"]["port"], f"mask {signal.SIGTERM:d}")
    await host.stop(app)
    await host.wait_remembered('"STOPPING"')
    await kill(host)

    await host.start_agent()

    await host.wait_gone(app)
    await host.wait_depot_empty()
    assert host.peer.on("droplet.exited") == []


async def test_an_agent_that_breaks_takes_no_app_along(hosts: OpenHost) -> None:
    """A fault of the agent's is not the apps'; the next one finds them."""
    async with hosts() as host:
        broken = await host.start_agent(hold="broken")
        app = host.make_app("shop")
        running = await host.run(app)
        host.hold_flag.unlink()

        assert await broken.wait_exited() == 1

        assert "PORT" in await host.environment_of(running["stats"]["port"])
        await host.start_agent()
        (found,) = await host.find(app)
        assert (found["instance"], found["state"]) == (running["instance"], "RUNNING")
        assert host.peer.on("droplet.exited") == []


async def test_the_exit_of_an_instance_without_its_container_is_published_and_its_routes_are_taken_back(
    host: Host,
) -> None:
    """As after a reboot: its address may soon be another's."""
    app = host.make_app("shop")
    running = await host.run(app)
    (handle,) = host.containers()
    await kill(host)
    os.kill(host.pid_of_container(handle), signal.SIGKILL)

    await host.start_agent()

    exited = await host.peer.wait_for("droplet.exited")
    assert (exited.body["instance"], exited.body["exit_status"]) == (running["instance"], -1)
    assert exited.body["exit_description"] == "unknown"
    (unregistered,) = host.peer.on("router.unregister")
    assert unregistered.number < exited.number
    assert unregistered.body["port"] == running["stats"]["port"]
    await host.wait_depot_empty()


def edit_record(host: Host, **changes: object) -> None:
    """As a former agent would have left it, killed at the right moment."""
    (record,) = (host.base_dir / "db" / "instances").glob("*.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


@pytest.mark.parametrize("state", ["STOPPING", "CRASHED"])
async def test_a_route_that_was_taken_away_just_before_an_end_is_taken_back(host: Host, state: str) -> None:
    """By an update whose unregister the former agent did not come to publish."""
    app = host.make_app("shop")
    running = await host.run(app)
    await host.wait_remembered('"RUNNING"')
    await kill(host)
    edit_record(host, state=state, leaving=["old.example.com"])

    await host.start_agent()

    assert await host.peer.until(
        lambda: any(one.body["uris"] == ["old.example.com"] for one in host.peer.on("router.unregister")), 20
    )
    assert {one.body["port"] for one in host.peer.on("router.unregister")} == {running["stats"]["port"]}
    await host.wait_depot_empty()


async def test_the_route_of_what_ended_meanwhile_is_known_to_every_next_agent(host: Host) -> None:
    """The second one finds it ended, and is killed before it tells; the third takes the route back."""
    app = host.make_app("shop")
    running = await host.run(app)
    await host.wait_remembered('"RUNNING"')
    await kill(host)
    await host.ask_app(running["stats"]["port"], "exit 3")
    edit_record(host, healthy=False)  # what the second one writes when it finds that

    await host.start_agent()

    exited = await host.peer.wait_for("droplet.exited")
    (unregistered,) = host.peer.on("router.unregister")
    assert unregistered.number < exited.number
    assert unregistered.body["uris"] == list(app.uris)


async def test_a_detached_agent_answers_a_staging_and_leaves_its_container_to_nobody(host: Host) -> None:
    """A staging cannot be taken over; who waits for it is told at once."""
    app = host.make_app("staged")
    host.files.put(f"/packages/{app.id}", make_package(host.listener, app.id))
    pack = host.files.put("/buildpacks/slow", make_buildpack(takes=True, compile_waits_s=60))
    message = host.staging_message(app, admin_buildpacks=[{"key": "slow", "url": pack}])
    await host.peer.say(f"staging.{host.dea}.start", message, "staged")
    await host.running.wait_log("buildpack_begun", app=app.id)

    await detach(host)

    assert [one.body["error"] for one in host.peer.on("staged")] == [None, "Error staging: task stopped"]
    assert host.containers() == []
    await host.start_agent()
    assert len(host.peer.on("staged")) == 2
