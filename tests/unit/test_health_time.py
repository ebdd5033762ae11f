"""The time that an app has to become ready goes on over a restart of the agent."""

from __future__ import annotations

import pytest

from agent.instances.health import time_left_s

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("now_s", "left_s"),
    [
        (1000.0, 60.0),  # just started
        (1045.0, 15.0),  # a former agent waited for 45 s
        (1060.0, 0.0),
        (5000.0, 0.0),  # nobody looked for an hour: one more look, and no more
        (900.0, 60.0),  # the clock was set back
    ],
)
def test_what_a_former_agent_waited_is_used_up(now_s: float, left_s: float) -> None:
    """Neither more than all of it nor less than none, whatever the clock says."""
    assert time_left_s(60.0, 1000.0, now_s) == left_s
