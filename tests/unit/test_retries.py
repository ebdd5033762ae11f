"""Removals that are tried again, and the manager that lets go of them."""

from __future__ import annotations

import asyncio

import pytest

from container.aio import Background, SilentLog
from container.retries import Retries

pytestmark = pytest.mark.unit


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
