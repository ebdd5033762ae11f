"""A staging has one deadline, from the first byte of its package to the last of its cache, and nothing outlasts it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from conftest import OpenHost
from driver import Host
from staging_kit import Desk, buildpack

pytestmark = pytest.mark.bus

TIMED_OUT = "Staging in container timed out"


@pytest_asyncio.fixture
async def brief(hosts: OpenHost) -> AsyncIterator[Host]:
    """An agent whose stagings may take five seconds."""
    async with hosts(staging={"max_staging_duration": 5}) as host:
        await host.start_agent()
        yield host


async def test_a_package_that_does_not_come(brief: Host) -> None:
    """The deadline passes before the first reply: the error stands in both."""
    desk = Desk(brief)
    app = desk.app()
    with brief.files.stalled(f"/packages/{app.id}"):
        staging = await desk.stage(app=app)
        second = await staging.reply(2)
    assert staging.replies()[0]["error"] == second["error"] == TIMED_OUT
    await staging.over()


async def test_an_admin_buildpack_that_does_not_come(brief: Host) -> None:
    """Its time is the staging's too; the next staging fetches it anew."""
    desk = Desk(brief)
    pack = desk.pack("slow", buildpack())
    with brief.files.stalled("/buildpacks/slow"):
        staging = await desk.stage(pack)
        await staging.reply(2)
    assert [reply["error"] for reply in staging.replies()] == [TIMED_OUT, TIMED_OUT]
    assert (await (await desk.stage(pack)).reply(2))["buildpack_key"] == "slow"


@pytest.mark.parametrize("program", ["detect", "release"])
async def test_every_program_of_a_buildpack_is_ended(brief: Host, program: str) -> None:
    """Not only compile: the container goes with what ran in it."""
    desk = Desk(brief)
    script = "trap '' TERM; sleep 600"
    endless = buildpack(detect=script) if program == "detect" else buildpack(release=script)
    staging = await desk.stage(desk.pack("endless", endless))
    assert (await staging.reply(2))["error"] == TIMED_OUT
    assert staging.replies()[0]["error"] is None
    await staging.over()


async def test_an_upload_that_is_not_taken(brief: Host) -> None:
    """The droplet is made, and nobody takes it in time."""
    desk = Desk(brief)
    app = desk.app()
    with brief.files.stalled(f"{app.path}/upload"):
        staging = await desk.stage(desk.pack("any", buildpack()), app=app)
        assert (await staging.reply(2))["error"] == TIMED_OUT
    await staging.over()


async def test_a_cache_costs_time_only(brief: Host) -> None:
    """One that trickles is done without, one that is not taken is not stored; the droplet is there all the same."""
    desk = Desk(brief)
    pack = desk.pack("any", buildpack())
    trickles, stays = desk.app(), desk.app()
    brief.files.put(f"/caches/{trickles.id}", b"x" * 1000)
    with brief.files.stalled(f"/caches/{trickles.id}"), brief.files.stalled(f"/caches/{stays.id}/upload"):
        for app in (trickles, stays):
            second = await (await desk.stage(pack, app=app)).reply(2)
            assert second["droplet_sha1"] is not None, second
            assert "error" not in second
    assert brief.running.log("buildpack_cache_ignored")
    assert brief.running.log("buildpack_cache_not_stored")


async def test_packing_does_not_use_the_apps_path(host: Host) -> None:
    """Its tar sleeps, its mkdir fails: the platform's programs are the stack's."""
    desk = Desk(host)
    fakes = {
        f"bin/{name}": (b"#!/bin/sh\nsleep 600\n", 0o755) for name in ("tar", "gzip", "mkdir", "rm", "sh")
    }
    app = desk.app(fakes)
    host.files.put(f"/caches/{app.id}", b"no tar")
    staging = await desk.stage(
        desk.pack("any", buildpack().replace(b"#!/usr/bin/env bash", b"#!/bin/bash")),
        app=app,
        properties={"environment": ["PATH=/home/vcap/app/bin", "TAR_OPTIONS=--no-such", "GZIP=-no-such"]},
    )
    assert (await staging.reply(2))["droplet_sha1"] is not None


async def test_what_a_buildpack_leaves_running_is_ended_before_packing(host: Host) -> None:
    """One that stops every tar it sees, and writes to the droplet without end, in a session of its own."""
    desk = Desk(host)
    stops = (
        "trap '' TERM; while :; do date >> /home/vcap/app/grows;"
        "for p in /proc/[0-9]*; do case $(readlink $p/exe) in */tar) kill -STOP ${p#/proc/};; esac; done; done"
    )
    compiles = f"setsid bash -c '{stops.replace(chr(39), chr(34))}' >/dev/null 2>&1 </dev/null &"
    staging = await desk.stage(desk.pack("haunts", buildpack(compile=compiles)))
    assert (await staging.reply(2))["droplet_sha1"] is not None


async def test_what_is_left_running_has_ended_when_the_droplet_is_packed(host: Host) -> None:
    """It is told with TERM and has a moment: what it writes then is in the droplet."""
    desk = Desk(host)
    app = desk.app()
    leaves = 'trap "echo > /home/vcap/app/ended; exit" TERM; touch /tmp/ready; sleep 600 & wait'
    compiles = (
        f"setsid bash -c '{leaves}' >/dev/null 2>&1 </dev/null & until [ -e /tmp/ready ]; do sleep 0.1; done"
    )
    staging = await desk.stage(desk.pack("leaves", buildpack(compile=compiles)), app=app)
    assert (await staging.reply(2))["droplet_sha1"] is not None
    with tarfile.open(fileobj=io.BytesIO(host.files.uploads[f"{app.path}/upload"])) as droplet:
        assert "./app/ended" in droplet.getnames()
