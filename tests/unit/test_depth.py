"""Depth of what strangers send: one bound, far below what a decoder or an encoder survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.bus import messages as m
from agent.bus.depth import MAX_DEPTH, is_too_deep

pytestmark = pytest.mark.unit
START = json.loads((Path(__file__).resolve().parents[1] / "fixtures" / "dea.start.json").read_text())


def nested(levels: int, leaf: Any = 1) -> Any:
    value = leaf
    for level in range(levels):
        value = [value] if level % 2 else {"k": value}
    return value


@pytest.mark.parametrize("levels", [0, 1, 8, MAX_DEPTH])
def test_what_nests_within_the_bound_is_not_too_deep(levels: int) -> None:
    """The bound itself is within."""
    assert not is_too_deep(nested(levels))


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 975, 100_000])
def test_what_nests_beyond_it_is_too_deep(levels: int) -> None:
    """However deep: the question does not recurse."""
    assert is_too_deep(nested(levels))
    assert is_too_deep([1, {"a": [], "b": nested(levels)}])


def with_credentials(levels: int) -> dict[str, Any]:
    services = [START["services"][0] | {"credentials": nested(levels)}]
    return {**START, "services": services}


def with_application(levels: int) -> dict[str, Any]:
    return {**START, "vcap_application": {"k": nested(levels - 1)}}


@pytest.mark.parametrize("make", [with_credentials, with_application])
def test_a_start_message_is_as_deep_as_the_bound_at_most(make: Any) -> None:
    """What is accepted can be encoded again, and what is not is refused as any other bad message."""
    found = m.decode(m.StartMessage, json.dumps(make(MAX_DEPTH)).encode())
    assert msgspec.json.decode(m.encode(found), type=m.StartMessage) == found
    for levels in (MAX_DEPTH + 1, 400):
        with pytest.raises(m.MessageError, match="at most 64 levels"):
            m.decode(m.StartMessage, json.dumps(make(levels)).encode())
        with pytest.raises(m.MessageError, match="at most 64 levels"):
            m.convert(m.StartMessage, make(levels))
