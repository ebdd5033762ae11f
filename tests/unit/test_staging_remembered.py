"""What is remembered of a staging, before its controller is told of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from agent.bus import messages as m
from agent.memory.ahead import Memory
from agent.memory.store import INSTANCES, STAGINGS, RecordStore
from agent.phases import Phases
from agent.staging.keeper import StagingKeeper
from agent.staging.registry import StagingRegistry
from agent.staging.run import StagingRun

pytestmark = pytest.mark.unit

LOG: Any = structlog.get_logger()


async def test_the_second_reply_waits_for_the_record_of_the_start_that_it_tells(tmp_path: Path) -> None:
    """It carries a checksum, by which a controller takes index 0 for started here: so the next agent must know that start."""
    store = RecordStore(tmp_path / "db", tmp_path / "agent.id")
    memory = Memory(store, LOG)
    await memory.save()
    waits_for: list[int] = []
    start = SimpleNamespace()
    told = SimpleNamespace(publish_event=lambda *_, **__: waits_for.append(memory.generation))
    stagings = StagingKeeper(
        SimpleNamespace(),  # type: ignore[arg-type]
        StagingRegistry(lambda: 1.0),
        told,  # type: ignore[arg-type]
        SimpleNamespace(release=lambda _: None),  # type: ignore[arg-type]
        Phases(),
        begin=lambda *_: None,
        start=lambda _: memory.keep(INSTANCES, "first", lambda: b"{}"),
        changed=lambda task_id, _, __: memory.keep(STAGINGS, task_id, lambda: b"{}"),
    )
    task = SimpleNamespace(
        message=SimpleNamespace(task_id="t", app_id="a"),
        reply_to="box",
        start=start,
        log=LOG,
        output=SimpleNamespace(close=lambda: None),
    )
    outcome = SimpleNamespace(
        detected_name="x", buildpack=SimpleNamespace(key=None), start_command="./x", processes={}
    )
    staged = SimpleNamespace(outcome=outcome, sha1="0" * 40, size_bytes=1, upload_error=None)
    written_before = memory.generation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m, "with_sha1", lambda message, _: message)
        stagings._finish(StagingRun(task), staged)  # type: ignore[arg-type]

    (generation,) = waits_for
    assert generation > written_before, "it would leave before anything more is written"
    await memory.save()
    await memory.wait_written(generation)
    assert (tmp_path / "db/instances/first.json").exists()
    memory.close()
