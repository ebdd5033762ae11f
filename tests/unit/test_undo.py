"""The stack of undos: in reverse, each once, and never past one that failed."""

from __future__ import annotations

import asyncio

import pytest

from container.undo import UndoStack

pytestmark = pytest.mark.unit


class Steps:
    """Named steps; those in ``broken`` fail."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.broken: set[str] = set()

    def do(self, name: str) -> None:
        if name in self.broken:
            raise OSError(16, "busy", name)
        self.done.append(name)

    async def do_later(self, name: str) -> None:
        await asyncio.sleep(0)
        self.do(name)


def stack(steps: Steps) -> UndoStack:
    undo = UndoStack()
    undo.callback(steps.do, "lease")
    undo.push_async_callback(steps.do_later, "disk")
    undo.callback(steps.do, "link")
    return undo


async def test_steps_are_undone_in_reverse_and_once() -> None:
    """A second close has nothing to do."""
    steps = Steps()
    undo = stack(steps)

    await undo.aclose()
    await undo.aclose()

    assert steps.done == ["link", "disk", "lease"]
    assert len(undo) == 0


async def test_a_step_that_fails_stays_with_what_is_below_it() -> None:
    """The lease is not free while the disk is there; the next close goes on where this one stood."""
    steps = Steps()
    undo = stack(steps)
    steps.broken = {"disk"}
    for _ in range(2):
        with pytest.raises(OSError, match="disk"):
            await undo.aclose()
        assert steps.done == ["link"]
        assert len(undo) == 2

    steps.broken = set()
    await undo.aclose()

    assert steps.done == ["link", "disk", "lease"]


async def test_a_step_that_is_cancelled_is_done_again() -> None:
    """It may have been done in part, and every step can be done twice."""
    steps = Steps()
    undo = UndoStack()
    undo.callback(steps.do, "lease")
    undo.push_async_callback(asyncio.Event().wait)
    closing = asyncio.create_task(undo.aclose())
    await asyncio.sleep(0)
    closing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await closing

    assert len(undo) == 2
    assert steps.done == []


async def test_steps_move_to_another_stack_whole() -> None:
    """The first has none of them any more."""
    steps = Steps()
    undo = stack(steps)

    other = undo.pop_all()
    await undo.aclose()
    assert steps.done == []
    await other.aclose()

    assert steps.done == ["link", "disk", "lease"]
