"""Which routes are taken back once more, and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from agent.bus.messages import RouterRegister, RouterUnregister
from agent.bus.unregistered import KEPT_S, Unregistered

pytestmark = pytest.mark.unit


def route(kind: type[Any], *uris: str, port: int = 1, owner: str = "p1") -> Any:
    return kind("dea", "app", uris, "10.0.0.1", port, {}, owner)


def test_what_was_taken_back_is_due_for_two_minutes() -> None:
    """A router prunes by itself after that."""
    kept = Unregistered()
    first, second = route(RouterUnregister, "a"), route(RouterUnregister, "b")
    kept.add(first, 0.0)
    kept.add(second, 1.0)
    assert kept.due(KEPT_S - 0.1) == [first, second]
    assert kept.due(KEPT_S + 0.1) == [second]
    assert kept.due(KEPT_S + 1.1) == []


@pytest.mark.parametrize(
    ("registered", "left"),
    [
        (route(RouterRegister, "c", port=2, owner="p2"), ("a", "b")),
        (route(RouterRegister, "c", owner="p2"), None),
        (route(RouterRegister, "c"), ("a", "b")),
        (route(RouterRegister, "b", "c"), ("a",)),
        (route(RouterRegister, "a", "b"), None),
    ],
    ids=["another port", "a new owner", "the owner's other routes", "one of them again", "all of them again"],
)
def test_a_register_ends_what_it_contradicts(registered: Any, left: tuple[str, ...] | None) -> None:
    """An app that gave up one route of three still registers the two every few seconds."""
    kept = Unregistered()
    kept.add(route(RouterUnregister, "a", "b"), 0.0)
    kept.registered(registered)
    assert [event.uris for event in kept.due(1.0)] == ([left] if left else [])
