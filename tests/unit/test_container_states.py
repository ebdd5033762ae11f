"""The states of a container, as a literal: which action is permitted in which, and where it leads."""

from __future__ import annotations

import inspect

import pytest

import container
from container.parts import ACTIONS

pytestmark = pytest.mark.unit

#: state: {action: next state}
TABLE = {
    "active": {
        "spawn": "active", "change": "active", "look": "active", "stop": "stopped", "die": "dead",
        "destroy": "destroying",
    },
    "stopped": {
        "change": "stopped", "look": "stopped", "stop": "stopped", "die": "dead", "destroy": "destroying",
    },
    "dead": {"look": "dead", "stop": "dead", "die": "dead", "destroy": "destroying"},
    "destroying": {"die": "destroying", "fail": "destroy failed", "end": "destroyed"},
    "destroy failed": {"die": "destroy failed", "destroy": "destroying"},
    "destroyed": {"die": "destroyed"},
}  # fmt: skip


def test_the_table() -> None:
    """Whatever is not in it is `WrongState`."""
    found: dict[str, dict[str, str]] = {}
    for (state, action), after in ACTIONS.items():
        found.setdefault(str(state), {})[str(action)] = str(after)
    assert found == TABLE


def test_every_error_of_the_library_is_a_container_error() -> None:
    """A caller that decides nothing more catches one class; all of them are exported with it."""
    exported = {getattr(container, name) for name in container.__all__}
    errors = {one for one in exported if inspect.isclass(one) and issubclass(one, BaseException)}
    assert {one.__name__ for one in errors if not issubclass(one, container.ContainerError)} == set()
    assert len(errors) > 15
