"""What a host has to give, and what is promised already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.bus import messages as m
from agent.config import ResourceSettings
from agent.instances.instance import Instance, State
from agent.resources import Capacity, Claim, Short, claim_of, make_capacity

pytestmark = pytest.mark.unit
START = Path(__file__).parents[1] / "fixtures" / "dea.start.json"


def instance(state: State, *, handle: str | None = "h") -> Instance:
    """Of 64 MB memory and 128 MB disk."""
    body = {**json.loads(START.read_bytes()), "limits": {"mem": 64, "disk": 128, "fds": 16}}
    message = m.convert(m.StartMessage, body)
    return Instance("i", "p", message, "v", (), state=state, handle=handle)


@pytest.mark.parametrize(
    ("state", "claim"),
    [
        (State.BORN, Claim(64, 128)),
        (State.STARTING, Claim(64, 128)),
        (State.RUNNING, Claim(64, 128)),
        (State.STOPPING, Claim(64, 128)),
        (State.EVACUATING, Claim(64, 128)),  # the original let a draining host look empty
        (State.CRASHED, Claim(0, 0)),
        (State.STOPPED, Claim(0, 0)),
    ],
)
def test_what_a_state_holds(state: State, claim: Claim) -> None:
    """Memory and disk while it may run, nothing afterwards."""
    assert claim_of(instance(state)) == claim


@pytest.mark.parametrize(("kept_bytes", "disk_mb"), [(0, 0), (1, 1), (1 << 20, 1), ((1 << 20) + 1, 2)])
def test_a_crash_holds_what_is_kept_of_it(kept_bytes: int, disk_mb: int) -> None:
    """Its output; not the disk that its container might have used, which is gone."""
    crashed = instance(State.CRASHED)
    crashed.kept_bytes = kept_bytes
    assert claim_of(crashed) == Claim(0, disk_mb)


def test_what_is_asked_for_exactly_fits_and_disk_is_looked_at_first() -> None:
    """As docs/protocol.md, "Start message", says."""
    left = Capacity(64, 128)

    assert left.lacks(Claim(64, 128)) is None
    assert left.lacks(Claim(65, 128)) is Short.MEMORY
    assert left.lacks(Claim(65, 129)) is Short.DISK


def test_an_overcommitted_host_shows_it() -> None:
    """What is left may be negative, as adverts of the original are."""
    assert Capacity(100, 100).left([Claim(80, 10), Claim(80, 10)]) == Capacity(-60, 80)


def test_without_figures_capacity_follows_the_host() -> None:
    """Nine tenths of the memory, and the disk above the low-water mark; never the original's 16 TiB."""
    assert make_capacity(ResourceSettings(low_water_mb=1000), 10_000, 50_000) == Capacity(9_000, 49_000)
    assert make_capacity(ResourceSettings(low_water_mb=1000), 10_000, 500).disk_mb == 0


def test_configured_figures_count_with_their_factors() -> None:
    """An operator who promises more than there is does so knowingly."""
    settings = ResourceSettings(
        memory_mb=1000, memory_overcommit_factor=1.5, disk_mb=2000, disk_overcommit_factor=2
    )
    assert make_capacity(settings, 8, 8) == Capacity(1500, 4000)
