"""How the rungs of a create are undone: in reverse, each once, and never past one that failed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from container import create
from container.build import Build
from container.create import RUNGS, Abandoned
from container.rungs import Rung
from container.shared import Shared

pytestmark = pytest.mark.unit


class Steps:
    """What the rungs do; those in ``broken`` fail, and those in ``stuck`` do not end."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.broken: set[str] = set()
        self.stuck: set[str] = set()

    async def do(self, what: str) -> None:
        await asyncio.sleep(0)
        if what in self.stuck:
            await asyncio.Event().wait()
        if what in self.broken:
            raise OSError(16, "busy", what)
        self.done.append(what)


class Step(Rung):
    def __init__(self, name: str, steps: Steps) -> None:
        self.name, self._steps = name, steps

    async def make(self, build: Build) -> None:
        await self._steps.do(f"make {self.name}")

    async def undo(self, build: Build) -> None:
        await self._steps.do(f"undo {self.name}")


class Silent:
    def warning(self, *_: object, **__: object) -> None:
        """Not looked at here."""


class Fake:
    """Of what all containers share the loop needs no more than this."""

    log = Silent()

    def fault(self, rung: str) -> None:
        """No rung breaks on purpose."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(create, "RUNGS", [Step(name, steps) for name in ("lease", "disk", "link")])
    return steps


def new() -> Build:
    return Build(cast("Shared", cast("Any", Fake())), "box", "id")


async def test_what_was_made_is_undone_in_reverse_and_once(steps: Steps) -> None:
    """A second undo has nothing to do."""
    build = new()
    await create.build(build)
    await create.undo(build)
    await create.undo(build)

    assert steps.done == [
        "make lease", "make disk", "make link", "undo link", "undo disk", "undo lease",
    ]  # fmt: skip
    assert build.standing == 0


async def test_a_rung_that_breaks_is_undone_with_those_below_it(steps: Steps) -> None:
    """It may be half made; those above were never begun. Its name is kept for the error."""
    build = new()
    steps.broken = {"make disk"}
    with pytest.raises(OSError, match="make disk"):
        await create.build(build)

    assert steps.done == ["make lease", "undo disk", "undo lease"]
    assert (build.broken, build.standing) == ("disk", 0)


async def test_an_undo_that_fails_stays_with_what_is_below_it(steps: Steps) -> None:
    """The lease is not free while the disk is there; the next undo goes on where this one stood."""
    build = new()
    await create.build(build)
    steps.done.clear()
    steps.broken = {"undo disk"}
    for _ in range(2):
        with pytest.raises(OSError, match="undo disk"):
            await create.undo(build)
        assert steps.done == ["undo link"]
        assert build.standing == 2

    steps.broken = set()
    await create.undo(build)

    assert steps.done == ["undo link", "undo disk", "undo lease"]


async def test_a_create_that_cannot_be_undone_whole_raises_what_broke_it(steps: Steps) -> None:
    """What is left stands, for the next try."""
    build = new()
    steps.broken = {"make link", "undo disk"}
    with pytest.raises(OSError, match="make link"):
        await create.build(build)

    assert build.standing == 2


async def test_an_undo_that_is_cancelled_is_done_again(steps: Steps) -> None:
    """It may have been done in part, and every undo can be done twice."""
    build = new()
    await create.build(build)
    steps.stuck = {"undo link"}
    undoing = asyncio.create_task(create.undo(build))
    await asyncio.sleep(0)
    undoing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await undoing

    assert build.standing == 3


async def test_a_create_whose_caller_has_gone_makes_no_further_rung(steps: Steps) -> None:
    """And undoes what it had made."""
    build = new()
    build.abandoned = True
    with pytest.raises(Abandoned):
        await create.build(build)

    assert steps.done == ["undo lease"]


def test_every_rung_has_a_name_of_its_own() -> None:
    """The order is pinned: what the kernel does not take back is named in the directory before it is made."""
    assert [rung.name for rung in RUNGS] == [
        "leases", "directory", "disk", "cgroups", "launch", "network", "ready", "files", "snapshot", "watch",
    ]  # fmt: skip
