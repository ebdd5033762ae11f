"""What the bus is told of an end."""

from __future__ import annotations

import signal

import pytest

from agent.instances.instance import Exit
from agent.instances.life import exit_of
from container import ExitStatus

pytestmark = pytest.mark.unit

EXITED, OOM = "app instance exited", "out of memory"


@pytest.mark.parametrize(
    ("status", "out_of_memory", "expected"),
    [
        (ExitStatus(code=0), False, Exit(0, EXITED)),
        (ExitStatus(code=3), True, Exit(3, EXITED)),
        (ExitStatus(code=137), True, Exit(255, OOM)),
        (ExitStatus(code=137), False, Exit(137, EXITED)),
        (ExitStatus(signal=signal.SIGKILL), True, Exit(255, OOM, 9)),
        (ExitStatus(signal=signal.SIGKILL), False, Exit(255, EXITED, 9)),
        (ExitStatus(signal=signal.SIGSEGV), True, Exit(255, EXITED, 11)),
        (ExitStatus(signal=signal.SIGKILL, overran=True), True, Exit(255, EXITED, 9)),
        (ExitStatus(lost=True), True, Exit(-1, "unknown")),
    ],
)
def test_only_a_kill_can_have_been_one_for_memory(
    status: ExitStatus, out_of_memory: bool, expected: Exit
) -> None:
    """One of the first process, or the 137 that its shell makes of it; a code, another signal and a limit are themselves."""
    assert exit_of(status, out_of_memory=out_of_memory) == expected
