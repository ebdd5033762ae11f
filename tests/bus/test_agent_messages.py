"""The messages that the agent publishes by itself, field by field, and how its signals change them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from driver import DEFAULTS, LOCAL_IP, STACK, Host, stack_dir

pytestmark = pytest.mark.bus

OpenHost = Callable[..., AbstractAsyncContextManager[Host]]
MEMORY_MB, DISK_MB = DEFAULTS["resources"]["memory_mb"], DEFAULTS["resources"]["disk_mb"]


def advert(host: Host, counts: dict[str, int], memory_mb: int, disk_mb: int) -> dict[str, Any]:
    return {
        "id": host.dea,
        "stacks": [STACK],
        "available_memory": MEMORY_MB - memory_mb,
        "available_disk": DISK_MB - disk_mb,
        "app_id_to_count": counts,
        "placement_properties": {"zone": "default"},
    }


async def test_both_adverts_have_what_is_left_and_the_same_id(host: Host) -> None:
    """A controller that finds an id in one pool and not in the other starts one instance and forgets the rest."""
    assert host.peer.on("dea.advertise")[0].body == advert(host, {}, 0, 0)
    app = host.make_app("shop")

    await host.run(app)

    filled = advert(host, {app.id: 1}, 512, 1024)
    told = await host.peer.wait_for("dea.advertise", lambda body: bool(body["app_id_to_count"]))
    assert told.body == filled
    staging = await host.peer.wait_for("staging.advertise", lambda body: body["available_memory"] < MEMORY_MB)
    shared = ("id", "stacks", "available_memory", "available_disk")
    assert staging.body == {key: filled[key] for key in shared}


async def test_a_heartbeat_lists_each_instance_and_is_sent_when_there_is_none(host: Host) -> None:
    """The health manager takes silence for a host that has died."""
    empty = await host.peer.wait_for("dea.heartbeat")
    app = host.make_app("shop")
    running = await host.run(app, 3)

    told = await host.peer.wait_for("dea.heartbeat", lambda body: bool(body["droplets"]))

    assert empty.body == {"droplets": [], "dea": host.dea}
    assert told.body == {
        "droplets": [
            {
                "cc_partition": "default",
                "droplet": app.id,
                "version": app.v1,
                "instance": running["instance"],
                "index": 3,
                "state": "RUNNING",
                "state_timestamp": running["state_timestamp"],
            }
        ],
        "dea": host.dea,
    }


async def test_a_route_is_published_in_the_form_that_routers_accept(host: Host) -> None:
    """gorouter drops the whole message for one wrong type."""
    app = host.make_app("shop", uris=("one.example.com", "two.example.com"))
    running = await host.run(app)

    (route,) = [one.body for one in host.peer.on("router.register")]

    assert len(route.pop("private_instance_id")) == 64
    assert route == {
        "dea": host.dea,
        "app": app.id,
        "uris": ["one.example.com", "two.example.com"],
        "host": LOCAL_IP,
        "port": running["stats"]["port"],
        "tags": {"component": "dea-0"},
    }


async def test_an_app_without_routes_runs_at_once_and_registers_an_empty_list(host: Host) -> None:
    """A worker opens no port; nothing is waited for."""
    app = host.make_app("worker", uris=())
    await host.run(app, start_command="sleep 1000")

    (route,) = host.peer.on("router.register")

    assert route.body["uris"] == []


async def test_usr1_takes_the_host_from_the_pool_and_nothing_else(host: Host) -> None:
    """Adverts end; heartbeats and starts go on."""
    app = host.make_app("shop")
    await host.run(app)
    host.running.signal(signal.SIGUSR1)
    shutdown = await host.peer.wait_for("dea.shutdown")
    since = shutdown.number

    await host.run(app, 1)
    for _ in range(2):  # two periods of a heartbeat are six of an advert
        beat = await host.peer.wait_for("dea.heartbeat", since=host.peer.mark)

    assert shutdown.body == {
        "id": host.dea,
        "ip": LOCAL_IP,
        "version": "0.0.1",
        "app_id_to_count": {app.id: 1},
    }
    assert len(beat.body["droplets"]) == 2
    assert host.peer.on("dea.advertise", since) == []
    assert host.peer.on("staging.advertise", since) == []


async def test_a_start_that_does_not_fit_is_published_and_kept_as_a_crash(host: Host) -> None:
    """The controller starts it elsewhere; here it holds nothing, as nothing was made for it."""
    app = host.make_app("huge")
    await host.start(app, limits={"mem": MEMORY_MB + 1})

    exited = (await host.peer.wait_for("droplet.exited")).body
    told = await host.peer.wait_for("dea.advertise", lambda body: app.id in body["app_id_to_count"])

    assert isinstance(exited.pop("crash_timestamp"), int)
    (crashed,) = await host.find(app)
    assert exited == {
        "cc_partition": "default",
        "droplet": app.id,
        "version": app.v1,
        "instance": crashed["instance"],
        "index": 0,
        "reason": "CRASHED",
        "exit_status": -1,
        "exit_description": "Not enough memory resource available.",
    }
    assert crashed["state"] == "CRASHED"
    assert told.body == advert(host, {app.id: 1}, 0, 0)
    assert host.peer.on("router.unregister") == []


async def test_a_reply_to_a_find_has_what_the_app_uses(host: Host) -> None:
    """In bytes and in cores, as the controller reads them."""
    app = host.make_app("shop")
    await host.run(app)
    (plain,) = await host.find(app)
    (found,) = await host.find(app, include_stats=True)
    stats = found.pop("stats")
    usage = stats.pop("usage")

    assert found == plain
    assert found["staged"] == f"/{found['instance']}"
    assert (stats["host"], stats["name"], stats["uris"]) == (LOCAL_IP, "shop", list(app.uris))
    assert (stats["mem_quota"], stats["disk_quota"]) == (512 << 20, 1024 << 20)
    assert stats["fds_quota"] == 16384
    assert isinstance(stats["uptime"], int)
    assert 0 < usage["mem"] < 512 << 20
    assert len(app.droplet.data) < usage["disk"] < 1024 << 20
    assert 0 <= usage["cpu"] < 4
    assert usage["time"].endswith(" +0000")


async def test_a_stack_that_is_not_there_is_not_advertised(hosts: OpenHost, base_dir: Path) -> None:
    """It would draw starts that must fail; once it is there it is, without a new start of the agent."""
    late = base_dir / "late"
    stacks = [
        {"name": STACK, "package_path": str(stack_dir())},
        {"name": "late", "package_path": str(late)},
    ]
    async with hosts(stacks=stacks) as host:
        agent = await host.start_agent()
        assert [one.body["stacks"] for one in host.peer.on("dea.advertise")] == [[STACK]]
        assert [one.body["stacks"] for one in host.peer.on("staging.advertise")] == [[STACK]]
        await agent.wait_log("stack_not_advertised", stack="late", error=f"there is no {late}")

        (late / "bin").mkdir(parents=True)
        await host.peer.wait_for("dea.advertise", lambda body: body["stacks"] == [STACK, "late"])
        await host.peer.wait_for("staging.advertise", lambda body: body["stacks"] == [STACK, "late"])
        assert len(agent.log("stack_not_advertised")) == 1
