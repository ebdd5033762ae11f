"""The parts of staging that decide without a container: the registry, the replies, and what the container is made of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import UNSET

from agent.bus import messages as m
from agent.config import StagingSettings
from agent.resources import Claim
from agent.staging.buildpacks import Buildpack, Outcome, StagingFailed
from agent.staging.registry import ENDED_KEPT, FAILURES_KEPT, StagingRegistry
from agent.staging.replies import failure_reply, public_failure, success_reply
from agent.staging.run import StagingRun
from agent.staging.task import Staged
from agent.staging.workshop import Workshop
from container import SpecError
from wsh.units import MIB

pytestmark = pytest.mark.unit

REQUEST: Any = SimpleNamespace(task_id="t", app_id="a")
OUTCOME = Outcome(Buildpack("static", "key", Path("/b")), "Static", "./web", {"web": "./web"})


def run_of(task_id: str, app_id: str = "a") -> StagingRun:
    task: Any = SimpleNamespace(message=SimpleNamespace(task_id=task_id, app_id=app_id), reply_to="box")
    return StagingRun(task)


def test_a_staging_can_be_found_until_others_have_ended_after_it() -> None:
    """Its output is asked for after its end, too."""
    registry = StagingRegistry(lambda: 1.0)
    runs = [run_of(f"t{number}") for number in range(ENDED_KEPT + 1)]
    for run in runs:
        registry.add(run)
    assert len(registry) == len(runs)
    for run in runs:
        assert registry.find(run.task.message.task_id) is run.task
        registry.remove(run)
    assert len(registry) == 0
    assert registry.find("t0") is None, "the oldest has gone"
    assert registry.find("t1") is runs[1].task


async def test_a_staging_that_has_not_begun_is_waited_for() -> None:
    """Another one that begins meanwhile does not end the wait, and the time does."""
    registry = StagingRegistry(lambda: 1.0)
    assert await registry.wait_for("t", 0.0) is None
    waiting = asyncio.create_task(registry.wait_for("t", 30.0))
    await asyncio.sleep(0)
    registry.add(run_of("other"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    run = run_of("t")
    registry.add(run)
    assert await asyncio.wait_for(waiting, 5) is run.task
    assert await registry.wait_for("t", 0.0) is run.task


def test_of_one_id_the_newest_is_found() -> None:
    """A controller may use an id again."""
    registry = StagingRegistry(lambda: 1.0)
    old, new = run_of("t"), run_of("t")
    registry.add(old)
    registry.remove(old)
    registry.add(new)
    assert registry.find("t") is new.task


def test_a_run_that_is_over_is_not_under_way_any_more() -> None:
    """Its container may still be there."""
    registry = StagingRegistry(lambda: 1.0)
    run, other = run_of("t"), run_of("u", "b")
    registry.add(run)
    registry.add(other)
    assert registry.of_app("a") == (run,)
    run.over = True
    assert registry.of_app("a") == ()
    assert registry.under_way() == (other,)
    assert len(registry) == 1


def test_the_newest_failures_are_remembered_each_until_a_success() -> None:
    """One for an app."""
    registry = StagingRegistry(lambda: 1.0)
    for number in range(FAILURES_KEPT):
        registry.note_failure(f"a{number}", "first")
    registry.note_failure("a0", "again")  # the newest now
    registry.note_failure("more", "first")
    again = registry.failure_of("a0")
    assert again is not None
    assert (again.stream, again.data) == ("sys", b"again\n")
    assert registry.failure_of("a1") is None
    registry.note_success("a0")
    registry.note_success("a0")
    assert registry.failure_of("a0") is None


def test_a_staging_is_remembered_until_its_last_reply_is_kept() -> None:
    """The next agent answers what this one has not."""
    run = run_of("t")
    run.over = True
    saved = run.saved()
    assert saved is not None
    assert (saved.task_id, saved.app_id, saved.reply_to) == ("t", "a", "box")
    run.kept = True
    assert run.saved() is None


@pytest.mark.parametrize(
    ("failed", "info"),
    [
        (StagingFailed("it failed"), UNSET),
        (StagingFailed("it failed", "StagingError", "no disk"), m.ErrorInfo("StagingError", "no disk")),
        (StagingFailed("it failed", "NoAppDetectedError"), m.ErrorInfo("NoAppDetectedError", "it failed")),
    ],
)
def test_a_failure_has_an_error_info_if_its_kind_is_known(failed: StagingFailed, info: Any) -> None:
    """A controller that reads a kind translates it for its user."""
    reply = failure_reply(REQUEST, failed)
    assert (reply.task_id, reply.app_id, reply.error, reply.error_info) == ("t", "a", "it failed", info)
    assert reply.droplet_sha1 is None


def test_what_is_published_of_a_failure_has_no_secret_and_no_path() -> None:
    """The kind stays."""
    failed = StagingFailed("from http://u:p@h/x", "StagingError", "/var/garrison/staging/1: full")
    found = public_failure(failed, ("/var/garrison",))
    assert "p@" not in found.error
    assert "/var/garrison" not in found.message
    assert found.kind == "StagingError"


@pytest.mark.parametrize(
    ("upload_error", "with_checksum", "expected"),
    [(None, True, ("5a", UNSET)), (None, False, (None, UNSET)), ("502", True, ("5a", "502"))],
)
def test_the_checksum_is_published_if_index_0_starts_here(
    upload_error: str | None, with_checksum: bool, expected: tuple[str | None, Any]
) -> None:
    """Also when the upload failed."""
    reply = success_reply(REQUEST, Staged(OUTCOME, "5a", 1, upload_error), with_checksum=with_checksum)
    assert (reply.droplet_sha1, reply.error) == expected
    assert (reply.detected_buildpack, reply.buildpack_key) == ("Static", "key")
    assert (reply.detected_start_command, reply.procfile) == ("./web", {"web": "./web"})


def test_the_workshop_has_one_mount_and_its_buildpacks_by_number() -> None:
    """The app above the stack, both lowers of the root: a rename between app and cache stays on one mount."""
    packs = (Buildpack("admin", "k", Path("/admin"), mapped=True), Buildpack("own", None, Path("/own")))
    shop = Workshop("t", Path("/stack"), Path("/tree"), packs, Claim(64, 128), ())
    spec = shop.spec(StagingSettings())
    assert spec.layers == (Path("/tree"), Path("/stack"))
    assert spec.home_layers == ()
    assert [(one.source, one.target, one.mapped) for one in spec.binds] == [
        (Path("/admin"), "/tmp/buildpacks/0", True),
        (Path("/own"), "/tmp/buildpacks/1", False),
    ]
    assert (spec.limits.memory_bytes, spec.limits.disk_bytes) == (64 * MIB, 128 * MIB)


def test_a_rule_that_makes_no_sense_is_refused_before_there_is_a_container() -> None:
    """As a start refuses it."""
    rule = m.EgressMessage(protocol="carrier pigeon", destination="10.0.0.1")
    shop = Workshop("t", Path("/stack"), Path("/tree"), (), Claim(64, 128), (rule,))
    with pytest.raises(SpecError, match="carrier pigeon"):
        shop.spec(StagingSettings())
