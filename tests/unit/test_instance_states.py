"""The state table: each pair is a row or refused, and the rows keep the promises made to peers."""

from __future__ import annotations

import itertools

import pytest

from agent.bus.messages import AppLimits, StartMessage
from agent.instances.instance import (
    LIFE_BROKE,
    MOVES,
    RECOVERY,
    Course,
    Effect,
    Instance,
    InstanceEvent,
    MoveRefused,
    State,
)

pytestmark = pytest.mark.unit


def instance(state: State = State.BORN) -> Instance:
    message = StartMessage("app", "v", "name", 0, AppLimits(16, 32, 64), (), "default")
    return Instance(id="i", private_id="p", message=message, version="v", uris=(), state=state)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, InstanceEvent)))
def test_each_pair_moves_as_listed_or_is_refused(state: State, event: InstanceEvent) -> None:
    """What is not in the table changes nothing."""
    one = instance(state)
    if (row := MOVES.get((state, event))) is None:
        with pytest.raises(MoveRefused, match=event.value):
            one.move(event, 5.0)
        assert one.state is state
    else:
        assert one.move(event, 5.0) == row.effects
        assert one.state is row.state
        assert one.state_since_s == (5.0 if row.state is not state else 0.0)


def test_a_route_goes_before_an_exit_is_told() -> None:
    """A router must never send traffic to an app that the controller counts as gone."""
    for row in MOVES.values():
        if Effect.UNREGISTER in row.effects and Effect.ANNOUNCE_EXIT in row.effects:
            assert row.effects.index(Effect.UNREGISTER) < row.effects.index(Effect.ANNOUNCE_EXIT)


def test_nothing_that_was_asked_to_stop_is_told_as_a_crash() -> None:
    """One exit message per life that ends CRASHED, none for a stop."""
    for (state, _), row in MOVES.items():
        if state is State.STOPPING:
            assert Effect.ANNOUNCE_EXIT not in row.effects
            assert row.state in (State.STOPPING, State.STOPPED)


def test_whatever_lives_can_be_stopped_and_evacuated() -> None:
    """A stop wins at every point of a start."""
    for state in (State.BORN, State.STARTING, State.RUNNING, State.EVACUATING):
        assert MOVES[state, InstanceEvent.STOP].state is State.STOPPING
    for state in (State.BORN, State.STARTING, State.RUNNING):
        assert MOVES[state, InstanceEvent.EVACUATE].state is State.EVACUATING
        assert Effect.UNREGISTER not in MOVES[state, InstanceEvent.EVACUATE].effects


def test_a_life_that_broke_ends_by_a_row_of_the_table() -> None:
    """From every state in which somebody looks after an instance."""
    assert set(LIFE_BROKE) == set(State) - {State.CRASHED, State.STOPPED}
    ends = {MOVES[pair].state for pair in LIFE_BROKE.items()}
    assert ends == {State.CRASHED, State.STOPPED}


def test_an_instance_is_taken_up_by_the_rows_of_recovery_alone() -> None:
    """No event of a life leads from BORN to RUNNING, and what is taken up keeps its time."""
    assert all(row.state is not State.RUNNING for (state, _), row in MOVES.items() if state is State.BORN)
    one = instance()
    assert one.take_up(Course.RUN, evacuating=False, since_s=3.0) == RECOVERY[Course.RUN, False].effects
    assert (one.state, one.state_since_s) == (State.RUNNING, 3.0)


def test_a_recovery_without_a_row_changes_nothing() -> None:
    """What was being stopped is not evacuating."""
    one = instance()
    with pytest.raises(MoveRefused, match="STOP while evacuating"):
        one.take_up(Course.STOP, evacuating=True, since_s=3.0)
    assert one.state is State.BORN
