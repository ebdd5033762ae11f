"""Plays the conversations of tests/fixtures/sequences with a real agent, message by message (driver_talk.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from driver import Host
from driver_match import load
from driver_talk import SEQUENCES, Talk, turns

pytestmark = pytest.mark.bus

#: 15, 17 and 18 take the bus away; they need a relay between agent and server, and come with it.
LEFT_OUT = ("15", "17", "18")

#: How the host is set up for a turn; the others take the driver's defaults.
SET_UP: dict[tuple[str, str], dict[str, Any]] = {
    ("02", "full"): {"resources": {"memory_mb": 512}},
    ("10", "A queued"): {"downloads": {"concurrent": 1}},
}


def conversations() -> Iterator[Any]:
    for path in sorted(SEQUENCES.glob("*.yml")):
        if path.name[:2] not in LEFT_OUT:
            for turn in turns(path):
                yield pytest.param(path.name, turn, id=f"{path.stem}{turn and f'-{turn}'}".replace(" ", "-"))


def without_find(script: dict[str, Any]) -> dict[str, Any]:
    """09 asks for a file's address, which needs the directory server: that question and its answer are left out."""
    talk = [step for step in script["talk"] if "found" not in (step.get("expect"), step.get("inbox"))]
    return script | {"talk": talk}


@pytest.mark.parametrize(("name", "turn"), list(conversations()))
async def test_a_conversation_goes_as_the_peers_expect(
    hosts: Callable[..., AbstractAsyncContextManager[Host]], name: str, turn: str
) -> None:
    """Order across subjects, what overlaps, and what must never be said."""
    script = load(SEQUENCES / name)
    if name.startswith("09"):
        script = without_find(script)

    async with hosts(**SET_UP.get((name[:2], turn), {})) as host:
        await Talk(name, turn, script, host).play()
