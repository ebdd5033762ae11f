"""The count of the controller's changes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from agent.dev.changes import ChangeCount
from agent.dev.pushes import IDLE_S, Changes, Pushes
from agent.dev.records import (
    HEARTBEAT_TTL_S,
    STOP_GRACE_S,
    App,
    AppStore,
    HostReport,
    Observed,
)

pytestmark = pytest.mark.unit


async def test_every_waiter_wakes_at_a_change() -> None:
    """Also at one that came between its look and its wait."""
    changes = ChangeCount()
    known = changes.number
    waiting = [asyncio.create_task(changes.wait(known, 30)) for _ in range(3)]
    await asyncio.sleep(0)
    changes.add()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)
        await changes.wait(known, 30)
    assert changes.number == known + 1


async def test_a_wait_without_a_change_ends_with_its_time() -> None:
    """And another number than the present one is a change, a larger one too: it is of a controller before."""
    changes = ChangeCount()
    began = time.monotonic()
    await changes.wait(changes.number, 0.1)
    assert 0.1 <= time.monotonic() - began < 5
    async with asyncio.timeout(5):
        await changes.wait(changes.number + 100, 30)


def test_what_time_alone_changes_is_a_change() -> None:
    """A host falls silent; a stopped instance is still there when its grace is over."""
    seen = Observed()
    seen.receive(HostReport("dea", ()), 0)
    seen.stopping["i"] = 0
    assert not seen.prune(1)
    assert seen.prune(HEARTBEAT_TTL_S + 1)
    assert not seen.prune(HEARTBEAT_TTL_S + 2)
    assert seen.prune(STOP_GRACE_S + 1)


def test_a_push_is_a_change_when_it_begins_ends_and_becomes_the_app(tmp_path: Path) -> None:
    """An idle one ends with the clock."""
    changes, store = ChangeCount(), AppStore(tmp_path / "apps.json")
    pushes = Pushes(tmp_path, store, changes.add)
    push = pushes.claim("hello", Changes(), 0)
    assert changes.number == 1
    pushes.end_idle(IDLE_S)
    assert changes.number == 1
    pushes.end_idle(IDLE_S + 1)
    assert (changes.number, push.over.is_set()) == (2, True)

    push = pushes.claim("hello", Changes(), 100)
    pushes.droplet(push.id).write_bytes(b"droplet")
    known = changes.number
    app = pushes.commit(push, droplet_sha1="s")
    assert isinstance(app, App)
    assert changes.number > known
