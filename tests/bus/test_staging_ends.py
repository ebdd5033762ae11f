"""Stagings that end early: by a stop at any point, or by the end or a kill of the agent; and two stagings of one task."""

from __future__ import annotations

import signal

import pytest
from driver import Host, fixture, poll
from staging_kit import Desk, buildpack

pytestmark = pytest.mark.bus

SLOW = "echo begun; sleep 60"


@pytest.fixture
def desk(host: Host) -> Desk:
    return Desk(host)


def stopped(task_id: str) -> dict[str, str]:
    """What replaces the second reply."""
    return {**fixture("staging.start.reply.stopped.json"), "task_id": task_id}


async def test_a_stop_while_it_compiles(desk: Desk, host: Host) -> None:
    """The stop's reply replaces the second one, at once; the container goes; nothing is uploaded or started."""
    app = desk.app()
    start = host.staging_message(app)["start_message"]
    staging = await desk.stage(desk.pack("slow", buildpack(compile=SLOW)), app=app, start_message=start)
    await staging.compiling()
    await host.peer.say("staging.stop", {"app_id": app.id})
    assert await staging.reply(2, within_s=10) == stopped(staging.task_id)
    assert (await host.status())["stagings"] == 0, "its room is free for the next one"
    await staging.over()
    assert len(staging.replies()) == 2
    assert host.files.uploads == {}
    assert await host.find(app) == []


async def test_a_stop_while_the_package_comes(desk: Desk, host: Host) -> None:
    """Before the first reply: the stop's is the only one, and what was fetched goes."""
    app = desk.app()
    with host.files.stalled(f"/packages/{app.id}") as reached:
        staging = await desk.stage(app=app)
        await reached.wait()
        await host.peer.say("staging.stop", {"app_id": app.id})
        assert await staging.reply(1, within_s=10) == stopped(staging.task_id)
        await poll(lambda: not list((host.base_dir / "staging").iterdir()), 10)
    assert list((host.base_dir / "staging").iterdir()) == []
    await staging.over()
    assert len(staging.replies()) == 1


async def test_a_stop_is_for_one_app(desk: Desk, host: Host) -> None:
    """The other's staging goes on; a stop of an app without staging is silence."""
    pack = desk.pack("slowish", buildpack(compile="sleep 2"))
    one, other = await desk.stage(pack), await desk.stage(pack)
    await one.compiling()
    await host.peer.say("staging.stop", {"app_id": one.app.id})
    await host.peer.say("staging.stop", {"app_id": "nobody"})
    assert (await other.reply(2))["droplet_sha1"] is not None
    assert await one.reply(2) == stopped(one.task_id)


async def test_two_stagings_of_one_id(desk: Desk, host: Host) -> None:
    """A peer that repeats itself breaks nothing: both are answered, a stop ends both, the agent goes on."""
    app = desk.app()
    pack = desk.pack("slow", buildpack(compile=SLOW))
    twins = [await desk.stage(pack, app=app, task_id="same") for _ in range(2)]
    for twin in twins:
        await twin.reply(1)
    await host.peer.say("staging.stop", {"app_id": app.id})
    for twin in twins:
        assert await twin.reply(2, within_s=10) == stopped("same")
    await host.wait_depot_empty()
    assert host.running.is_running
    assert (await (await desk.stage(desk.pack("any", buildpack()))).reply(2))["droplet_sha1"] is not None


async def test_a_strange_id_is_only_an_id(desk: Desk) -> None:
    """No path is made of it; it may have 256 bytes."""
    pack = desk.pack("any", buildpack())
    strange = [await desk.stage(pack, task_id=task_id) for task_id in ("../../etc", "", "a/b", "x" * 256)]
    for staging in strange:
        assert (await staging.reply(2))["task_id"] == staging.task_id
        assert staging.replies()[1]["droplet_sha1"] is not None


async def test_a_shutdown_ends_a_staging_with_a_reply(desk: Desk, host: Host) -> None:
    """Who waits for it is told before the agent leaves."""
    staging = await desk.stage(desk.pack("slow", buildpack(compile=SLOW)))
    await staging.compiling()
    assert await host.stop_agent() == 0
    assert await staging.reply(2, within_s=10) == stopped(staging.task_id)
    assert host.containers() == []


async def test_a_killed_agents_stagings_are_answered_by_the_next(desk: Desk, host: Host) -> None:
    """Nobody will finish it: it is told, and its container, its files and half a buildpack go."""
    app = desk.app()
    staging = await desk.stage(desk.pack("slow", buildpack(compile=SLOW)), app=app)
    await staging.compiling()
    host.running.signal(signal.SIGKILL)
    await host.running.wait_exited()
    for path in (host.base_dir / "admin_buildpacks").iterdir():
        path.rename(path.with_suffix(".new"))

    await host.start_agent()
    second = await staging.reply(2, within_s=20)
    assert second == {"task_id": staging.task_id, "error": "Error staging: the agent was restarted"}
    await staging.over()
    await poll(lambda: not list((host.base_dir / "staging").iterdir()), 10)
    assert list((host.base_dir / "staging").iterdir()) == []
    again = await desk.stage(desk.pack("slow", buildpack()), app=app)
    assert (await again.reply(2))["droplet_sha1"] is not None
