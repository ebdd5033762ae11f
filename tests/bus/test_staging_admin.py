"""The admin buildpacks of a host: usable whatever their file modes, and removed when the newest message does not list them."""

from __future__ import annotations

import asyncio

import pytest
from driver import Host, poll
from staging_kit import Desk, buildpack

pytestmark = pytest.mark.bus


@pytest.fixture
def desk(host: Host) -> Desk:
    return Desk(host)


def kept(host: Host) -> int:
    return len(list((host.base_dir / "admin_buildpacks").iterdir()))


async def test_a_buildpack_for_its_owner_alone(desk: Desk) -> None:
    """0700 programs in a zip: they are vcap's inside."""
    second = await (await desk.stage(desk.pack("private", buildpack(mode=0o700)))).reply(2)
    assert (second["buildpack_key"], second["detected_buildpack"]) == ("private", "Listener")


async def test_what_the_newest_message_does_not_list_goes(desk: Desk, host: Host) -> None:
    """What a staging uses goes when that is over; what is listed again is fetched again; without a list nothing changes."""
    old, used, new = (desk.pack(key, buildpack()) for key in ("old", "used", "new"))
    slow = desk.pack("slow", buildpack(compile="until [ -e /home/vcap/app/never ]; do sleep 0.1; done"))
    await (await desk.stage(old)).reply(2)
    assert kept(host) == 1

    going_on = await desk.stage(slow, used)
    await going_on.compiling()
    assert kept(host) == 2, "old is gone"
    await (await desk.stage(new)).reply(2)
    assert kept(host) == 3, "slow and used are in use"
    without = await desk.stage(app=desk.app({"Procfile": (b"web: ./run\n", 0o644)}), admin_buildpacks=None)
    assert (await without.reply(2))["detected_buildpack"] == "procfile"
    assert kept(host) == 3

    await host.peer.say("staging.stop", {"app_id": going_on.app.id})
    await poll(lambda: kept(host) == 1, 20)
    assert kept(host) == 1
    assert (await (await desk.stage(old)).reply(2))["buildpack_key"] == "old"
    assert kept(host) == 1
    assert host.files.asked.count("/buildpacks/old") == 2

    await (await desk.stage(app=desk.app({"Procfile": (b"web: ./run\n", 0o644)}), admin_buildpacks=[])).reply(
        2
    )
    await poll(lambda: kept(host) == 0, 20)
    assert kept(host) == 0, "an empty list lists none"


async def test_one_that_trickles_holds_up_no_other(desk: Desk, host: Host) -> None:
    """Each is fetched by itself, and once, however many stagings wait for it."""
    trickling, quick = desk.pack("trickling", buildpack()), desk.pack("quick", buildpack())
    with host.files.stalled("/buildpacks/trickling") as reached:
        waiting = [await desk.stage(trickling) for _ in range(2)]
        await asyncio.wait_for(reached.wait(), 20)
        second = await (await desk.stage(quick)).reply(2)
        assert second["buildpack_key"] == "quick"
        assert [one.replies() for one in waiting] == [[], []]
    for one in waiting:
        assert (await one.reply(2))["buildpack_key"] == "trickling"
    assert host.files.asked.count("/buildpacks/trickling") == 1
