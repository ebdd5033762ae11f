"""The phases of the agent, pinned as literals: what leads where, and what each permits."""

from __future__ import annotations

import pytest

from agent.phases import PERMITS, PHASES, RESUMED, AgentPhase, Phases, Wish

pytestmark = pytest.mark.unit

TABLE = """
serving + leave pool -> out of pool
serving + evacuate -> evacuating
serving + stop -> stopping
serving + detach -> detaching
out of pool + evacuate -> evacuating
out of pool + stop -> stopping
out of pool + detach -> detaching
evacuating + stop -> stopping
evacuating + detach -> detaching
"""

PERMITTED = """
serving: adverts starts remembered
out of pool: starts remembered
evacuating: remembered
stopping:
detaching:
"""


def test_the_table() -> None:
    """Whatever is not in it changes nothing."""
    rows = [f"{phase} + {wish} -> {after}" for (phase, wish), after in PHASES.items()]
    assert rows == TABLE.strip().splitlines()


def test_what_each_phase_permits() -> None:
    """Adverts and starts; and whether the next agent goes on with it."""
    rows = []
    for phase, permits in PERMITS.items():
        names = [name for name in ("adverts", "starts", "remembered") if getattr(permits, name)]
        rows.append(f"{phase}: {' '.join(names)}".rstrip())
    assert rows == PERMITTED.strip().splitlines()
    assert set(PERMITS) == set(AgentPhase)


@pytest.mark.parametrize("phase", AgentPhase)
@pytest.mark.parametrize("wish", Wish)
async def test_a_wish_changes_the_phase_by_a_row_or_not_at_all(phase: AgentPhase, wish: Wish) -> None:
    """The agent ends once it stops or detaches, and neither is taken back."""
    phases = Phases()
    phases.now = phase
    after = PHASES.get((phase, wish))

    assert phases.take(wish) is (after is not None)

    assert phases.now is (after or phase)
    assert phases.ending.is_set() is (after in (AgentPhase.STOPPING, AgentPhase.DETACHING))


def test_a_remembered_phase_is_entered_again_by_the_next_agent() -> None:
    """From serving, by the wish that led to it."""
    assert {PHASES[AgentPhase.SERVING, wish] for wish in RESUMED.values()} == set(RESUMED)
    remembered = {phase for phase, permits in PERMITS.items() if permits.remembered}
    assert remembered == {AgentPhase.SERVING, *RESUMED}
