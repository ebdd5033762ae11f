"""The table of states, pinned as a literal: the other tests read it from the code, and would follow a row that changed."""

from __future__ import annotations

import pytest

from agent.instances.instance import (
    HOLDS,
    IN_HEARTBEAT,
    LIFE_BROKE,
    MOVES,
    RECOVERY,
    ROUTED,
    STOPPABLE,
    UPDATABLE,
)

pytestmark = pytest.mark.unit

#: state, event -> new state: effects in their order
TABLE = """
BORN start -> STARTING: save
BORN refused -> CRASHED: save, announce exit
BORN stop -> STOPPING: save, unregister
BORN evacuate -> EVACUATING: save
STARTING healthy -> RUNNING: save, heartbeat, register
STARTING failed -> CRASHED: save, unregister, announce exit
STARTING exited -> CRASHED: save, unregister, announce exit
STARTING stop -> STOPPING: save, unregister
STARTING evacuate -> EVACUATING: save
RUNNING exited -> CRASHED: save, unregister, announce exit
RUNNING stop -> STOPPING: save, unregister
RUNNING evacuate -> EVACUATING: save
EVACUATING healthy -> EVACUATING: save, heartbeat, register
EVACUATING start -> EVACUATING:
EVACUATING failed -> CRASHED: save, unregister, announce exit
EVACUATING exited -> CRASHED: save, unregister, announce exit
EVACUATING stop -> STOPPING: save, unregister
STOPPING start -> STOPPING:
STOPPING healthy -> STOPPING:
STOPPING failed -> STOPPING:
STOPPING exited -> STOPPING:
STOPPING stop -> STOPPING:
STOPPING gone -> STOPPED: save, forget
CRASHED reap -> STOPPED: save, forget
"""


#: course of an instance of the former agent (and whether it was evacuating) -> new state: effects in their order
RECOVERED = """
RUN -> RUNNING: save, heartbeat, register
RUN evacuating -> EVACUATING: save, heartbeat, register
START -> STARTING: save
START evacuating -> EVACUATING: save
BEGIN -> BORN: save
BEGIN evacuating -> EVACUATING: save
LOST -> CRASHED: save, unregister, announce exit
LOST evacuating -> CRASHED: save, unregister, announce exit
STOP -> STOPPING: save, unregister
CRASHED -> CRASHED: save
"""


def test_each_row_of_recovery_is_this_one() -> None:
    """What a new agent does with what the former one left, by what it finds of it."""
    rows = {
        f"{course.name}{' evacuating' if evacuating else ''} -> {change.state.value}: "
        + ", ".join(effect.value for effect in change.effects)
        for (course, evacuating), change in RECOVERY.items()
    }
    assert {row.rstrip() for row in rows} == set(RECOVERED.strip().splitlines())


def test_each_row_is_this_one() -> None:
    """A transition that changes is a decision about what peers are told and what is remembered."""
    rows = {
        f"{state.value} {event.value} -> {move.state.value}: "
        + ", ".join(effect.value for effect in move.effects)
        for (state, event), move in MOVES.items()
    }
    assert {row.rstrip() for row in rows} == set(TABLE.strip().splitlines())


def test_what_each_state_means_to_others() -> None:
    """Who holds memory, who is in a heartbeat, who is stopped by a message, who has routes."""
    assert {state.value for state in HOLDS} == {"BORN", "STARTING", "RUNNING", "STOPPING", "EVACUATING"}
    assert {state.value for state in IN_HEARTBEAT} == {"STARTING", "RUNNING", "CRASHED", "EVACUATING"}
    assert {state.value for state in STOPPABLE} == {"BORN", "STARTING", "RUNNING", "STOPPING", "EVACUATING"}
    assert {state.value for state in ROUTED} == {"RUNNING", "EVACUATING"}
    assert {state.value for state in UPDATABLE} == {"BORN", "STARTING", "RUNNING", "EVACUATING"}


def test_a_life_that_breaks_ends_as_a_crash_or_as_the_stop_that_it_was() -> None:
    """An error of the agent's own leaves no instance in a state that nobody looks after."""
    assert {(state.value, event.value) for state, event in LIFE_BROKE.items()} == {
        ("BORN", "refused"),
        ("STARTING", "failed"),
        ("RUNNING", "exited"),
        ("EVACUATING", "exited"),
        ("STOPPING", "gone"),
    }
