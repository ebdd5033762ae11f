"""Which routes are taken back once more, for how long, and how long their ports rest."""

from __future__ import annotations

from typing import Any

import pytest

from agent.bus.messages import RouterRegister, RouterUnregister
from agent.bus.unregistered import REPEATED_MOST, REPEATED_S, REST_LIMIT_S, REST_S, Swept, Unregistered

pytestmark = pytest.mark.unit

PORT = 61001


def route(kind: type[Any], *uris: str, port: int = PORT, owner: str = "p1", host: str = "10.0.0.1") -> Any:
    return kind("dea", "app", uris, host, port, {}, owner)


def gone(*uris: str, **more: Any) -> Unregistered:
    """One unregister, with the number 1."""
    kept = Unregistered()
    kept.add(1, route(RouterUnregister, *uris, **more))
    return kept


def test_a_port_rests_from_the_moment_the_server_has_its_unregister() -> None:
    """Not from the event: a bus may be away for longer than a router keeps a route."""
    kept = gone("a")
    assert kept.rests(PORT, 1e9)
    assert not kept.rests(PORT + 1, 0.0)
    assert kept.passed(1, 1000.0)
    assert kept.rests(PORT, 1000.0 + REST_S - 0.1)
    assert not kept.rests(PORT, 1000.0 + REST_S)


def test_the_rest_begins_anew_with_each_repeat_until_it_is_over() -> None:
    """A router that has just come back may have missed the first one. What has rested delays nobody again."""
    kept = gone("a")
    kept.passed(1, 0.0)
    assert [number for number, _ in kept.repeat()] == [1]
    assert kept.rests(PORT, REST_S + 1)
    kept.passed(1, 100.0)
    assert kept.rests(PORT, REST_S + 99)
    assert kept.sweep(REST_S + 100) == Swept((1,), ())

    assert [number for number, _ in kept.repeat()] == [1]

    assert not kept.rests(PORT, REST_S + 101)


def test_the_longest_threshold_of_a_router_is_the_rest() -> None:
    """Within a bound; a shorter one or nonsense does not count."""
    kept = gone("a")
    kept.passed(1, 0.0)
    for heard in (300.0, 10.0, None):
        kept.set_prune_threshold(heard)
    assert kept.rests(PORT, 299.0)
    assert not kept.rests(PORT, 300.0)
    kept.set_prune_threshold(1e9)
    assert not kept.rests(PORT, REST_LIMIT_S)


@pytest.mark.parametrize(
    ("registered", "left"),
    [
        (route(RouterRegister, "a", port=PORT + 1), ("a", "b")),
        (route(RouterRegister, "a", host="10.0.0.2"), ("a", "b")),
        (route(RouterRegister, "c", owner="p2"), ("a", "b")),
        (route(RouterRegister, "b", "c", owner="p2"), ("a",)),
        (route(RouterRegister, "a", "b"), None),
    ],
    ids=["another port", "another host", "a new owner", "one of them again", "all of them again"],
)
def test_only_what_is_registered_now_is_left_out(registered: Any, left: tuple[str, ...] | None) -> None:
    """Per uri and host:port, whoever has the port: a router matches just these."""
    kept = gone("a", "b")
    assert kept.registered(registered) == (() if left else (1,))
    assert [event.uris for _, event in kept.repeat()] == ([left] if left else [])
    assert kept.passed(1, 0.0) is bool(left)


def test_an_unregister_without_a_route_is_nothing_to_repeat() -> None:
    """A worker's."""
    kept = gone()
    assert list(kept.repeat()) == []
    assert not kept.rests(PORT, 0.0)


def test_what_has_rested_is_repeated_for_an_hour_and_not_without_end() -> None:
    """Oldest first, and the newest stay when there are too many."""
    kept = Unregistered()
    many = REPEATED_MOST + 5
    for number in range(many):
        kept.add(number, route(RouterUnregister, f"u{number}", port=number))
        kept.passed(number, 0.0)

    swept = kept.sweep(REST_S)
    assert swept.rested == tuple(range(many))
    assert swept.over == tuple(range(5))
    assert [number for number, _ in kept.repeat()] == list(range(5, many))

    assert kept.sweep(REST_S + REPEATED_S - 1) == Swept((), ())
    assert kept.sweep(REST_S + REPEATED_S).over == tuple(range(5, many))
    assert list(kept.repeat()) == []


def test_what_a_former_agent_took_back_rests_or_has_rested() -> None:
    """Loaded by its file: the rest that was over stays over."""
    kept = Unregistered()
    kept.add(1, route(RouterUnregister, "a", port=1))
    kept.add(2, route(RouterUnregister, "b", port=2), rested_at_s=5.0)
    assert (kept.rests(1, 1e9), kept.rests(2, 5.0)) == (True, False)
    assert [number for number, _ in kept.repeat()] == [1, 2]


def test_a_dropped_unregister_lets_its_port_go() -> None:
    """Of two that were taken back at one port, the other one still holds it."""
    kept = gone("a")
    kept.add(2, route(RouterUnregister, "b", owner="p2"))
    kept.drop(1)
    kept.drop(1)
    assert kept.rests(PORT, 0.0)
    kept.drop(2)
    assert not kept.rests(PORT, 0.0)
    kept.add(3, route(RouterUnregister, "c", owner="p3"))
    kept.passed(3, 0.0)
    assert not kept.rests(PORT, REST_S), "what was dropped holds nothing"
