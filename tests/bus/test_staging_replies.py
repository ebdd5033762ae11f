"""Staging on the bus: two replies to one inbox, as the Cloud Controller reads them, and what they mean."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import signal
import tarfile
import uuid
from typing import Any

import pytest
from driver import Host, fixture
from driver_apps import tar_of
from staging_kit import Desk, buildpack

pytestmark = pytest.mark.bus

NO = "echo no >&2; exit 1"


@pytest.fixture
def desk(host: Host) -> Desk:
    return Desk(host)


def reply1(task_id: str, error: str | None = None) -> dict[str, Any]:
    return {"task_id": task_id, "task_streaming_log_url": None, "error": error}


def members(droplet: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(droplet)) as archive:
        return {m.name: (file.read() if (file := archive.extractfile(m)) else b"") for m in archive}


async def test_a_staging_answers_twice_and_then_starts_index_0(desk: Desk, host: Host) -> None:
    """The buildpack that fits is the second of the message; the controller starts the other indices from what it hears."""
    app = desk.app()
    staging = await desk.stage(
        desk.pack("first", buildpack(detect=NO)),
        desk.pack("second", buildpack()),
        app=app,
        start_message=host.staging_message(app)["start_message"],
    )
    await staging.reply(2)
    running = await host.wait_state(app, "RUNNING")

    droplet = host.files.uploads[f"{app.path}/upload"]
    web = "./listener"
    first, second = staging.replies()
    assert first == reply1(staging.task_id)
    assert second == {
        "task_id": staging.task_id,
        "app_id": app.id,
        "detected_buildpack": "Listener",
        "buildpack_key": "second",
        "droplet_sha1": hashlib.sha1(droplet, usedforsecurity=False).hexdigest(),
        "detected_start_command": web,
        "procfile": {"web": web, "worker": web},
    }
    assert set(second) == set(fixture("staging.start.reply2.success.json"))
    assert running["index"] == 0
    told = staging.heard()[1].number
    heartbeats = [one for one in host.peer.on("dea.heartbeat") if app.id in json.dumps(one.body)]
    assert heartbeats[0].number > told, "index 0 begins after the reply"
    assert {"./app/listener", "./staging_info.yml"} <= set(members(droplet))


async def test_the_agents_own_buildpacks_come_after_those_of_the_message(desk: Desk, host: Host) -> None:
    """A detected one of ours has no key; a command of the user's goes before the Procfile's."""
    app = desk.app({"Procfile": (b"web: ./from-procfile\nclock: ./tick\n", 0o644)})
    packs = [desk.pack("no", buildpack(detect=NO))]
    plain = await (await desk.stage(*packs, app=app)).reply(2)
    told = await (await desk.stage(*packs, app=app, properties={"meta": {"command": "./from-user"}})).reply(2)
    assert (plain["detected_buildpack"], plain["buildpack_key"]) == ("procfile", None)
    assert plain["procfile"] == {"web": "./from-procfile", "clock": "./tick"}
    assert plain["detected_start_command"] == "./from-procfile"
    assert told["detected_start_command"] == "./from-user"


async def test_detect_is_not_run_for_a_named_buildpack(desk: Desk) -> None:
    """`buildpack_key` means this one, whatever its detect would say; it is fetched once."""
    pack = desk.pack("stubborn", buildpack(detect=NO))
    for _ in range(2):
        staging = await desk.stage(pack, properties={"buildpack_key": "stubborn"})
        second = await staging.reply(2)
        assert (second["buildpack_key"], second["detected_start_command"]) == ("stubborn", "./listener")
    assert desk.host.files.asked.count("/buildpacks/stubborn") == 1


async def test_a_buildpack_whose_detect_cannot_run_does_not_match(desk: Desk) -> None:
    """One broken buildpack in the list does not take staging from all apps."""
    broken = desk.pack("broken", buildpack().replace(b"bin/detect", b"bin/detecT"))
    second = await (await desk.stage(broken, desk.pack("good", buildpack()))).reply(2)
    assert second["buildpack_key"] == "good"


async def test_a_staging_without_a_web_process_succeeds(desk: Desk) -> None:
    """The start command may come with the start message."""
    second = await (await desk.stage(desk.pack("bare", buildpack(release="echo '--- {}'")))).reply(2)
    assert second["droplet_sha1"] is not None
    assert (second["detected_start_command"], second["procfile"]) == (None, {})


async def test_the_cache_comes_back_and_is_stored(desk: Desk, host: Host) -> None:
    """What a compile leaves in the cache is there for the next one."""
    app = desk.app()
    keeps = desk.pack("keeps", buildpack(compile='cat "$2/mark" 2>/dev/null; echo kept > "$2/mark"'))
    await (await desk.stage(keeps, app=app)).reply(2)
    staging = await desk.stage(keeps, app=app)
    await staging.reply(2)
    assert b"kept" in await live_output(host, staging.task_id)
    assert members(host.files.uploads[f"/caches/{app.id}/upload"])["./mark"] == b"kept\n"


async def live_output(host: Host, task_id: str) -> bytes:
    """All that the control socket tells of a staging; also just after its end."""
    lines = await host.control_lines(f"/v1/staging/{task_id}/log?follow=1")
    return "".join(line["data"] for line in lines).encode()


@pytest.mark.parametrize(
    "cache", [b"no tar", tar_of({"../../etc/evil": (b"x", 0o644)})], ids=["junk", "evil"]
)
async def test_a_cache_is_only_a_cache(desk: Desk, host: Host, cache: bytes) -> None:
    """A corrupt one made every staging of the original fail; one that cannot be stored did too."""
    app = desk.app()
    host.files.put(f"/caches/{app.id}", cache)
    host.files.broken.add(f"/caches/{app.id}/upload")
    second = await (await desk.stage(desk.pack("any", buildpack()), app=app)).reply(2)
    assert second["droplet_sha1"] is not None
    assert "error" not in second
    assert host.running.log("buildpack_cache_ignored")
    assert host.running.log("buildpack_cache_not_stored")


async def test_the_output_of_a_staging_can_be_read_while_it_goes_on(desk: Desk, host: Host) -> None:
    """Who asks in the middle of a staging gets what was said before, then the rest, then the end."""
    slow = desk.pack("slow", buildpack(compile="echo early; sleep 2; echo late >&2"))
    staging = await desk.stage(slow)
    await staging.compiling()
    said = await live_output(host, staging.task_id)
    assert said.index(b"-----> Downloaded app package") < said.index(b"early") < said.index(b"late")
    assert said.index(b"late") < said.index(b"-----> Uploading droplet")


async def test_the_output_can_be_requested_before_the_staging_begins(desk: Desk, host: Host) -> None:
    """A controller reports the task to its client before the host has received it."""
    pack = desk.pack("waited", buildpack(compile="echo compiled"))
    task_id = str(uuid.uuid4())
    asked = asyncio.create_task(host.control_lines(f"/v1/staging/{task_id}/log?wait_s=30"))
    await asyncio.sleep(0.3)
    assert not asked.done()
    staging = await desk.stage(pack, task_id=task_id)
    lines = await asyncio.wait_for(asked, 60)
    assert "compiled\n" in [line["data"] for line in lines]
    await staging.reply(2)


async def test_the_original_message_is_understood(desk: Desk, host: Host) -> None:
    """Services, environment and rules of the fixture reach the compile."""
    shows = desk.pack("shows", buildpack(compile='echo "$RACK_ENV|$CF_STACK|$VCAP_SERVICES|$MEMORY_LIMIT"'))
    staging = await desk.stage(shows)
    await staging.reply(2)
    said = (await live_output(host, staging.task_id)).decode()
    assert "production|cflinuxfs2|" in said
    assert '"orders-db"' in said


@pytest.mark.parametrize("leaving", [signal.SIGUSR1, signal.SIGUSR2], ids=["left the pool", "evacuating"])
async def test_a_leaving_host_starts_nothing_and_replies_without_a_checksum(
    desk: Desk, host: Host, leaving: signal.Signals
) -> None:
    """With a checksum the controller would take index 0 for started here; without one it starts all of them elsewhere."""
    app = desk.app()
    other = host.make_app("other")  # an evacuation ends with its last instance
    await host.run(other)
    staging = await desk.stage(
        desk.pack("slow", buildpack(compile="sleep 1")),
        app=app,
        start_message=host.staging_message(app)["start_message"],
    )
    await staging.compiling()
    host.running.signal(leaving)
    await host.peer.wait_for("dea.shutdown")

    second = await staging.reply(2)

    assert second["droplet_sha1"] is None
    assert "error" not in second
    assert host.files.uploads[f"{app.path}/upload"]
    assert await host.find(app) == []
    assert host.running.log("staged_app_not_started_here")
