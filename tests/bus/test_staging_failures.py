"""Stagings that fail: each is answered with the texts and types that the Cloud Controller knows, and leaves nothing behind."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import OpenHost
from driver import Host, fixture
from driver_apps import zip_of
from staging_kit import Desk, Staging, buildpack

pytestmark = pytest.mark.bus

FAILED = "Script exited with status 1"


@pytest.fixture
def desk(host: Host) -> Desk:
    return Desk(host)


def failed(staging: Staging, error: str, kind: str | None = None, message: str = "") -> dict[str, Any]:
    """A second reply with nothing but an error (docs/protocol.md, "Staging replies")."""
    nothing = dict.fromkeys(
        ("detected_buildpack", "buildpack_key", "droplet_sha1", "detected_start_command", "procfile")
    )
    told: dict[str, Any] = {"task_id": staging.task_id, "app_id": staging.app.id, **nothing, "error": error}
    return told if kind is None else {**told, "error_info": {"type": kind, "message": message}}


async def test_each_step_of_a_buildpack_fails_with_its_own_type(desk: Desk) -> None:
    """What a user reads depends on the type; the replies are the fixtures' (`staging.start.reply2.no_buildpack.json`)."""
    nobody = await desk.stage(desk.pack("no", buildpack(detect="exit 1")), app=desk.app({"a": (b"", 0o644)}))
    crashes = await desk.stage(desk.pack("crashes", buildpack(compile="echo last words; exit 7")))
    released = await desk.stage(desk.pack("released", buildpack(release="echo cannot >&2; exit 1")))
    nonsense = await desk.stage(desk.pack("nonsense", buildpack(release="echo '[1, 2]'")))
    endless = await desk.stage(desk.pack("endless", buildpack(release="yes 'a: b' | head -c 9000000")))
    procfile = await desk.stage(
        desk.pack("any", buildpack()), app=desk.app({"Procfile": (b"- web\n", 0o644)})
    )

    expected = fixture("staging.start.reply2.no_buildpack.json")
    assert await nobody.reply(2) == {**expected, "task_id": nobody.task_id, "app_id": nobody.app.id}
    assert await crashes.reply(2) == failed(
        crashes, FAILED, "BuildpackCompileFailed", "Buildpack compilation step failed"
    )
    assert await released.reply(2) == failed(
        released, FAILED, "BuildpackReleaseFailed", "Release info failed: cannot"
    )
    for staging, kind, words in (
        (nonsense, "BuildpackReleaseFailed", "Release info failed: "),
        (endless, "BuildpackReleaseFailed", "Release info failed: more than 65536 bytes"),
        (procfile, "StagingError", "Procfile: "),
    ):
        second = await staging.reply(2)
        assert second["error_info"]["type"] == kind
        assert second["error_info"]["message"].startswith(words)
    for staging in (nobody, crashes, released, nonsense, endless, procfile):
        assert staging.replies()[0]["error"] is None
        assert len(staging.replies()) == 2
        assert f"{staging.app.path}/upload" not in desk.host.files.uploads
    await desk.host.wait_depot_empty()


async def test_a_container_that_cannot_be_removed_costs_no_droplet(desk: Desk) -> None:
    """The droplet is with the controller by then, who is told so; the container goes when it can."""
    staging = await desk.stage(
        desk.pack("slow", buildpack(compile="until [ -e /tmp/go ]; do sleep 0.1; done"))
    )
    await staging.compiling()
    (handle,) = desk.host.containers()
    place = desk.host.base_dir / "depot" / handle / "foreign"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
    try:
        Path(f"/proc/{desk.host.pid_of_container(handle)}/root/tmp/go").touch()
        second = await staging.reply(2)
        assert handle in desk.host.containers()
    finally:
        subprocess.run(["umount", str(place)], check=True)

    assert (second.get("error"), bool(second["droplet_sha1"])) == (None, True)
    assert f"{staging.app.path}/upload" in desk.host.files.uploads
    await desk.host.wait_depot_empty(60)


def hostile_packages() -> dict[str, bytes]:
    link = (stat.S_IFLNK | 0o777) << 16
    through = zip_of({"a": (b"/etc", 0o644), "a/evil": (b"x", 0o644)})
    return {
        "no-zip": b"not a zip at all",
        "empty": b"",
        "climbs": zip_of({"../evil": (b"x", 0o644)}),
        "absolute": zip_of({"/etc/evil": (b"x", 0o644)}),
        "through-a-link": through.replace(
            ((stat.S_IFREG | 0o644) << 16).to_bytes(4, "little"), link.to_bytes(4, "little"), 1
        ),
        "bomb": zip_of({"zeros": (bytes(700 << 20), 0o644)}),
    }


async def test_a_package_that_cannot_be_taken_fails_in_both_replies(desk: Desk) -> None:
    """Refused before there is a container: the first reply has the reason, the second ends the task."""
    stagings = {}
    for name, data in hostile_packages().items():
        app = desk.app()
        desk.host.files.put(f"/packages/{app.id}", data)
        stagings[name] = await desk.stage(app=app)
    missing = desk.app()
    del desk.host.files.files[f"/packages/{missing.id}"]
    stagings["missing"] = await desk.stage(app=missing)

    for name, staging in stagings.items():
        second = await staging.reply(2)
        first = staging.replies()[0]
        assert first["error"].startswith("Error staging: "), name
        assert second == failed(staging, first["error"]), name
    assert stagings["missing"].replies()[0]["error"].endswith("HTTP status: 404")
    assert not desk.host.running.log("staging_internal_error")
    assert list((desk.host.base_dir / "staging").iterdir()) == []


async def test_an_unknown_stack_fails_the_set_up(desk: Desk) -> None:
    """As in `staging.start.reply1.setup_failed.json`, but for the address that does not exist yet."""
    staging = await desk.stage(stack="lucid64")
    second = await staging.reply(2)
    expected = fixture("staging.start.reply1.setup_failed.json")
    assert staging.replies()[0] == expected | {"task_id": staging.task_id, "task_streaming_log_url": None}
    assert second == failed(staging, expected["error"])


async def test_a_custom_buildpack_is_refused_with_a_reason(desk: Desk) -> None:
    """Not supported yet, under either of its two names."""
    for key in ("buildpack", "buildpack_git_url"):
        staging = await desk.stage(properties={key: "https://git.example.com/pack.git#v1"})
        second = await staging.reply(2)
        assert "not supported yet" in staging.replies()[0]["error"]
        assert second["error_info"]["type"] == "StagingError"
        assert "not supported" in second["error_info"]["message"]


async def test_admin_buildpacks_that_cannot_be_had(desk: Desk) -> None:
    """A missing one is asked for three times, junk is not asked again, no address at all is passed over, an unknown key is named."""
    lost = {"key": "lost", "url": desk.host.files.url("/buildpacks/lost")}
    missing, junk = await desk.stage(lost), await desk.stage(desk.pack("junk", b"junk"))
    unknown = await desk.stage(properties={"buildpack_key": "unheard-of"})
    passed = await desk.stage({"key": "odd", "url": "file:///etc/passwd"}, desk.pack("good", buildpack()))

    assert "lost: Error downloading: HTTP status: 404" in (await missing.reply(2))["error_info"]["message"]
    assert "junk: zip: " in (await junk.reply(2))["error_info"]["message"]
    assert "unheard-of" in (await unknown.reply(2))["error_info"]["message"]
    assert (await passed.reply(2))["buildpack_key"] == "good"
    asked = desk.host.files.asked
    assert (asked.count("/buildpacks/lost"), asked.count("/buildpacks/junk")) == (3, 1)


async def test_a_droplet_that_cannot_be_uploaded_still_has_its_checksum(desk: Desk, host: Host) -> None:
    """`staging.start.reply2.upload_failed.json`: all is told, with the error beside it; nothing is started."""
    app = desk.app()
    host.files.broken.add(f"{app.path}/upload")
    staging = await desk.stage(
        desk.pack("any", buildpack()), app=app, start_message=host.staging_message(app)["start_message"]
    )
    second = await staging.reply(2)
    assert set(second) == set(fixture("staging.start.reply2.upload_failed.json"))
    assert len(second["droplet_sha1"]) == 40
    assert second["error"] == "Error uploading: (Upload failed - status 500)"
    await staging.over()
    assert await host.find(app) == []


async def test_a_compile_without_end_is_ended(hosts: OpenHost) -> None:
    """`staging.start.reply2.timeout.json`; its container goes with all its processes."""
    async with hosts(staging={"max_staging_duration": 2}) as host:
        await host.start_agent()
        desk = Desk(host)
        staging = await desk.stage(desk.pack("endless", buildpack(compile="trap '' TERM; sleep 600")))
        assert await staging.reply(2) == failed(staging, "Staging in container timed out")
        assert set(staging.replies()[1]) == set(fixture("staging.start.reply2.timeout.json"))
        await staging.over()


async def test_a_staging_without_capacity_gets_one_reply(desk: Desk, host: Host) -> None:
    """`staging.start.reply.insufficient_resources.json`, and for disk in the same words; nothing is fetched."""
    expected = fixture("staging.start.reply.insufficient_resources.json")
    for limit, resource in (("memory_limit", "memory"), ("disk_limit", "disk")):
        much: dict[str, Any] = {limit: 1 << 24}
        staging = await desk.stage(**much)
        refused = await staging.reply(1)
        assert set(refused) == set(expected)
        assert refused == {
            "task_id": staging.task_id,
            "error": f"Not enough {resource} resources available",
        }
        await staging.over()
        assert len(staging.replies()) == 1
    assert host.files.asked == []
