"""Removals that are tried again, and the manager that lets go of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from container.aio import Background, SilentLog
from container.retries import Retries

pytestmark = pytest.mark.unit


class Kept(SilentLog):
    """Warnings, with the handle they are of."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, object]] = []

    def warning(self, event: str, *args: Any, **fields: Any) -> None:
        self.lines.append((event, fields.get("handle")))


async def test_what_fails_while_the_manager_lets_go_is_left_to_the_next() -> None:
    """A removal that ends with an error after `stop` would go on in a depot that is closed, beside its successor."""
    background = Background(SilentLog())
    retries = Retries(background, SilentLog())

    async def attempt() -> None:
        raise AssertionError("tried by a manager that has gone")

    retries.add("before", attempt)
    assert "before" in retries
    await asyncio.sleep(0)  # it has begun
    retries.stop()
    retries.add("after", attempt)

    assert "after" not in retries
    async with asyncio.timeout(30):
        await background.close(20.0)
    assert len(retries) == 0


async def test_what_is_gone_by_anothers_doing_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handle may be another container's by then."""
    monkeypatch.setattr("container.retries._FIRST_S", 0.01)
    background = Background(SilentLog())
    retries = Retries(background, SilentLog())
    tried = asyncio.Event()

    async def attempt() -> None:
        tried.set()

    retries.add("box", attempt)
    retries.drop("box")
    retries.drop("box")
    assert "box" not in retries
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tried.wait(), 0.1)
    await background.close(20.0)


async def test_a_removal_is_tried_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure is logged; the last try ends it."""
    monkeypatch.setattr("container.retries._FIRST_S", 0.001)
    background, log = Background(SilentLog()), Kept()
    retries = Retries(background, log)
    done = asyncio.Event()

    async def attempt() -> None:
        if len(log.lines) < 3:
            raise OSError(16, "busy")
        done.set()

    retries.add("box", attempt)
    await asyncio.wait_for(done.wait(), 20)
    await asyncio.sleep(0)
    assert "box" not in retries
    assert log.lines == [("container_not_removed_trying_again", "box")] * 3
    await background.close(20.0)
