"""One class name has one meaning in the whole tree: a reader who looks a name up finds one class."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
#: Names that are still defined twice. The list only ever becomes shorter.
STILL_TWICE = frozenset(
    {
        "Exit",
        "Facts",
        "Found",
        "Heartbeat",
        "HeartbeatEntry",
        "Lines",
        "Refused",
        "StagingReply",
        "Store",
        "Unreadable",
        "Voice",
    }
)


def classes_of(source: str) -> Iterator[str]:
    """Every class of a module, also those in other classes and in functions."""
    return (node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))


def test_a_class_name_is_defined_once() -> None:
    """In the three packages together. A private name (`_Name`) counts too: it is read like any other."""
    places: dict[str, list[str]] = defaultdict(list)
    for package in ("agent", "container", "rootfs_builder"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in classes_of(path.read_text()):
                places[name].append(str(path.relative_to(ROOT)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in STILL_TWICE} == {}
    assert set(twice) == STILL_TWICE, "a name that is unique again leaves the list"


def test_nested_classes_are_found() -> None:
    """The check would not see a second one otherwise."""
    assert list(classes_of("class A:\n  class B: ...\ndef f():\n  class A: ...")) == ["A", "B", "A"]
