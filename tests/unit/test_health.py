"""How the health of an app is checked, as a value; and which jobs of a container are processes of its instance."""

from __future__ import annotations

from typing import Any, cast

import pytest

from agent.instances.health import Health, HealthKind, HealthPhase, choose_health, remembered
from agent.instances.process import WEB, found_processes

pytestmark = pytest.mark.unit

ROUTES = ("shop.example.com",)


@pytest.mark.parametrize(
    ("state_file", "uris", "host_port", "kind", "phase"),
    [
        ("run/state.json", ROUTES, 61001, HealthKind.FILE, HealthPhase.CHECKING),
        ("run/state.json", (), None, HealthKind.FILE, HealthPhase.CHECKING),
        (None, ROUTES, 61001, HealthKind.PORT, HealthPhase.CHECKING),
        (None, (), 61001, HealthKind.NONE, HealthPhase.HEALTHY),
        (None, ROUTES, None, HealthKind.NONE, HealthPhase.HEALTHY),
    ],
)
def test_a_file_comes_before_a_port_and_a_port_before_nothing(
    state_file: str | None,
    uris: tuple[str, ...],
    host_port: int | None,
    kind: HealthKind,
    phase: HealthPhase,
) -> None:
    """An app without routes, or without a port, is healthy at once."""
    health = choose_health(state_file, uris=uris, host_port=host_port, timeout_s=60.0)
    assert (health.kind, health.phase, health.is_healthy) == (kind, phase, phase is HealthPhase.HEALTHY)


def test_a_file_has_its_own_time_and_a_port_that_of_the_message() -> None:
    """300 s, as in the original; the texts name what was checked, and for how long."""
    by_file = choose_health("run/state.json", uris=ROUTES, host_port=61001, timeout_s=60.0)
    by_port = choose_health(None, uris=ROUTES, host_port=61001, timeout_s=60.0)
    assert by_file.too_late() == "/home/vcap/run/state.json did not say RUNNING within 300.0 s"
    assert by_port.too_late() == "port 61001 did not accept within 60.0 s"


def test_a_new_phase_keeps_what_is_checked() -> None:
    """The value itself does not change."""
    checking = choose_health(None, uris=ROUTES, host_port=61001, timeout_s=60.0)
    failed = checking.enter(HealthPhase.FAILED)
    assert (failed.port, failed.is_healthy, checking.phase) == (61001, False, HealthPhase.CHECKING)


def test_a_record_remembers_only_whether_it_was_healthy() -> None:
    """What is checked is found out again."""
    assert remembered(True) == Health(HealthPhase.HEALTHY)
    assert remembered(False) == Health(HealthPhase.UNKNOWN)


def test_the_app_is_found_by_the_id_that_former_releases_gave_its_job() -> None:
    """Other jobs of the container are no processes of the instance."""
    app, other = cast(Any, object()), cast(Any, object())
    found = found_processes({"app": app, "shell-1": other})
    assert {name: process.job for name, process in found.items()} == {WEB: app}
    assert found_processes({"shell-1": other}) == {}
