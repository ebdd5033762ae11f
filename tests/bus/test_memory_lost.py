"""The agent's memory is damaged or lost: the apps run on unchanged, and the agent keeps its id."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from driver import Host

pytestmark = pytest.mark.bus


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def cut_head(db: Path) -> None:
    cut(db / "agent.json")


def cut_records(db: Path) -> None:
    for path in (db / "instances").glob("*.json"):
        cut(path)


def lose_all(db: Path) -> None:
    shutil.rmtree(db)


def zero_all(db: Path) -> None:
    for path in db.rglob("*.json"):
        path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut_head, cut_records, zero_all, lose_all])
async def test_apps_outlive_their_agents_memory(host: Host, damage: Callable[[Path], None]) -> None:
    """Each instance is rebuilt from the copy beside its container: same host, ids, routes, state; nobody hears of an end."""
    apps = [host.make_app("one"), host.make_app("two")]
    before = [await host.run(app) for app in apps]
    dea, since = host.dea, host.peer.mark
    await host.stop_agent(signal.SIGKILL)
    damage(host.base_dir / "db")

    await host.start_agent()

    assert host.dea == dea
    kept = ("instance", "version", "index", "state", "state_timestamp")
    after = [(await host.find(app))[0] for app in apps]
    assert [[one[key] for key in kept] for one in after] == [[one[key] for key in kept] for one in before]
    await host.peer.until(lambda: len(host.peer.on("router.register", since)) >= len(apps), 20)
    routes = {(one.body["app"], one.body["port"]) for one in host.peer.on("router.register", since)}
    assert routes == {(app.id, one["stats"]["port"]) for app, one in zip(apps, before, strict=True)}
    assert host.peer.on("droplet.exited") == []
    assert host.peer.on("router.unregister") == []
    # and it is remembered again
    await host.stop_agent(signal.SIGKILL)
    await host.start_agent()
    assert [(await host.find(app))[0]["instance"] for app in apps] == [one["instance"] for one in before]


async def test_a_rebuilt_instance_is_as_its_last_update_left_it(host: Host) -> None:
    """Routes, version and id of the newest message, not of the start."""
    app = host.make_app("shop")
    await host.run(app)
    await host.peer.say("dea.update", {"droplet": app.id, "uris": ["new.example.com"], "version": app.v2})
    await host.peer.wait_for("router.unregister")
    (before,) = await host.find(app)
    await host.stop_agent(signal.SIGKILL)
    shutil.rmtree(host.base_dir / "db")
    since = host.peer.mark

    await host.start_agent()

    (after,) = await host.find(app)
    assert (after["instance"], after["version"]) == (before["instance"], app.v2)
    registered = await host.peer.wait_for("router.register", since=since)
    assert registered.body["uris"] == ["new.example.com"]


async def test_an_instance_that_cannot_be_taken_up_is_unregistered_and_its_exit_published(host: Host) -> None:
    """The container's snapshot and the memory are both damaged: its routes go and its controller learns of the end."""
    app = host.make_app("shop")
    running = await host.run(app)
    (handle,) = host.containers()
    await host.stop_agent(signal.SIGKILL)
    shutil.rmtree(host.base_dir / "db")
    cut(host.base_dir / "depot" / handle / "snapshot.json")

    await host.start_agent()

    exited = await host.peer.wait_for("droplet.exited")
    assert (exited.body["instance"], exited.body["exit_description"]) == (running["instance"], "unknown")
    (unregistered,) = host.peer.on("router.unregister")
    assert unregistered.number < exited.number
    assert unregistered.body["port"] == running["stats"]["port"]
    await host.wait_depot_empty()


async def test_an_unreadable_record_costs_that_record_alone(host: Host) -> None:
    """One of two is damaged in both places: the other runs on, and the agent starts."""
    good, bad = host.make_app("good"), host.make_app("bad")
    await host.run(good)
    lost = await host.run(bad)
    await host.stop_agent(signal.SIGKILL)
    for path in (*(host.base_dir / "db" / "instances").glob("*.json"), *host.base_dir.glob("depot/*/record")):
        if json.loads(path.read_text())["id"] == lost["instance"]:
            path.write_bytes(b"[" * 100_000)

    await host.start_agent()

    await host.running.wait_log("memory_record_damaged")
    assert [one["state"] for one in await host.find(good)] == ["RUNNING"]
    assert len(list((host.base_dir / "db" / "instances").glob("*.damaged"))) == 1


async def test_the_copy_beside_a_container_is_its_agents_alone(host: Host) -> None:
    """A start message holds credentials: mode 0600, and not among the properties that callers of the depot see."""
    await host.run(host.make_app("shop"))
    (handle,) = host.containers()
    directory = host.base_dir / "depot" / handle

    assert (directory / "record").stat().st_mode & 0o777 == 0o600
    assert set(json.loads((directory / "snapshot.json").read_text())["properties"]) == {"kind", "instance"}
    for path in (host.base_dir / "db").rglob("*.json"):
        assert path.stat().st_mode & 0o777 == 0o600
