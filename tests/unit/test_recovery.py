"""What becomes of an instance under the next agent: by what is remembered of it, and what is found."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from agent.bus.messages import AppLimits, StartMessage
from agent.instances.health import time_left_s
from agent.instances.instance import MOVES, RECOVERY, Course, Effect, State
from agent.memory.records import SavedExit, SavedInstance
from agent.recovery import START_KEPT_S, course_of

pytestmark = pytest.mark.unit
S, C = State, Course
NOW_S = 1_000_000.0


def saved(state: State, **changes: Any) -> SavedInstance:
    fields: dict[str, Any] = {
        "id": "i",
        "private_id": "p",
        "message": StartMessage("app", "v", "n", 0, AppLimits(1, 1, 1), (), "default"),
        "version": "v",
        "uris": (),
        "state": state,
        "state_since_s": NOW_S,
        "started_at_s": NOW_S,
        "handle": None,
        "healthy": False,
        "exit": SavedExit(-1, ""),
        "crashed_at_s": 0,
    }
    return SavedInstance(**{**fields, **changes})


@pytest.mark.parametrize(
    ("state", "healthy", "nothing", "container", "job"),
    [
        (S.BORN, False, C.BEGIN, C.BEGIN, C.START),
        (S.STARTING, False, C.BEGIN, C.BEGIN, C.START),
        (S.EVACUATING, False, C.BEGIN, C.BEGIN, C.START),
        (S.EVACUATING, True, C.LOST, C.LOST, C.RUN),
        (S.RUNNING, True, C.LOST, C.LOST, C.RUN),
        (S.STOPPING, True, C.STOP, C.STOP, C.STOP),
        (S.STOPPING, False, C.STOP, C.STOP, C.STOP),
        (S.CRASHED, True, C.CRASHED, C.CRASHED, C.CRASHED),
        (S.CRASHED, False, C.CRASHED, C.CRASHED, C.CRASHED),
    ],
)
def test_each_state_has_its_course(
    state: State, healthy: bool, nothing: Course, container: Course, job: Course
) -> None:
    """With nothing found, with a container, with a container and its job."""
    one = saved(state, healthy=healthy)
    found = [
        course_of(one, has_container=has_container, has_app=has_app, now_s=NOW_S)
        for has_container, has_app in ((False, False), (True, False), (True, True))
    ]
    assert found == [nothing, container, job]


@pytest.mark.parametrize("clock", [1, -1])
def test_a_start_that_waits_for_long_is_lost(clock: int) -> None:
    """Its controller has placed it elsewhere by then; so it is where the host's clock was set."""
    old = saved(S.STARTING, state_since_s=NOW_S - clock * (START_KEPT_S + 1))
    assert course_of(old, has_container=False, has_app=False, now_s=NOW_S) is C.LOST
    assert course_of(old, has_container=True, has_app=True, now_s=NOW_S) is C.START


def test_a_start_whose_message_is_not_known_whole_is_not_begun() -> None:
    """It would run without its services; one that runs already runs on."""
    part = saved(S.STARTING, whole=False)
    assert course_of(part, has_container=True, has_app=False, now_s=NOW_S) is C.LOST
    assert course_of(part, has_container=True, has_app=True, now_s=NOW_S) is C.START


@pytest.mark.parametrize(
    ("since_start_s", "left_s"), [(0, 60), (20, 40), (60, 0), (3600, 0), (-5, 60), (-3600, 60)]
)
def test_the_time_to_become_healthy_is_counted_from_the_start(since_start_s: float, left_s: float) -> None:
    """Not from the agent's; never negative, and a clock that was set gives no more than all of it."""
    assert time_left_s(60, NOW_S, NOW_S + since_start_s) == left_s


def test_every_change_of_state_is_saved_before_anything_is_published() -> None:
    """Whoever publishes waits for what was marked before; so the mark comes first in each row."""
    published = {Effect.HEARTBEAT, Effect.REGISTER, Effect.UNREGISTER, Effect.ANNOUNCE_EXIT, Effect.FORGET}
    for (state, event), move in MOVES.items():
        if move.state is not state or published & set(move.effects):
            assert move.effects[:1] == (Effect.SAVE,), (state, event)


@pytest.mark.parametrize("state", list(State))
def test_whatever_is_found_has_a_row(state: State) -> None:
    """The new agent can take up each instance, in whatever state it was remembered, and the row keeps an evacuation."""
    for healthy, has_container, has_app, whole in itertools.product((False, True), repeat=4):
        if has_app and not has_container:
            continue
        one = msgspec.structs.replace(saved(state, healthy=healthy), whole=whole)
        course = course_of(one, has_container=has_container, has_app=has_app, now_s=NOW_S)
        row = RECOVERY[course, state is S.EVACUATING]
        assert row.effects[0] is Effect.SAVE
        if state is S.EVACUATING:
            assert row.state in (S.EVACUATING, S.CRASHED)
