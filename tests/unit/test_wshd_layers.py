"""The layers of wshd at work: each includes and calls only those before it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOM = Path(__file__).parents[2] / "wsh"

LAYERS = ("loop", "output", "jobs", "spawn", "requests", "serve")
#: Sources that belong to a layer without a header of its own, or with one that only that layer includes.
PARTS = {
    "child.c": "spawn", "child.h": "spawn", "replies.c": "requests", "replies.h": "requests",
}  # fmt: skip
#: What is below all of them: values and small things.
BELOW = {"util.h", "plan.h", "launch.h"}


def layer_of(name: str) -> int | None:
    stem = PARTS.get(name, name.rsplit(".", 1)[0])
    return LAYERS.index(stem) if stem in LAYERS else None


def code(path: Path) -> str:
    """Without comments and texts."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)


def sources() -> list[Path]:
    return [path for path in sorted(ROOM.glob("*.[ch]")) if layer_of(path.name) is not None]


def test_every_layer_has_a_header_and_a_source() -> None:
    """One of each."""
    for layer in LAYERS:
        assert {path.suffix for path in ROOM.glob(f"{layer}.[ch]")} == {".c", ".h"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_a_layer_includes_only_what_is_below_it(path: Path) -> None:
    """Its own header, those of lower layers, and those of values."""
    own = layer_of(path.name)
    assert own is not None
    for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
        if name in BELOW:
            continue
        other = layer_of(name)
        assert other is not None, f"{path.name} includes {name}, which is of no layer"
        assert other <= own, f"{path.name} includes {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_a_layer_calls_only_what_is_below_it(path: Path) -> None:
    """Also not by a declaration of its own that no header has."""
    own = layer_of(path.name)
    assert own is not None
    declared = {
        name: index
        for index, layer in enumerate(LAYERS)
        for name in re.findall(r"^\w[\w *]*?\b(\w+)\([^)]*\);", code(ROOM / f"{layer}.h"), re.MULTILINE)
    }
    assert len(declared) > 30
    upward = {name for name in re.findall(r"\b(\w+)\s*\(", code(path)) if declared.get(name, -1) > own}
    assert upward == set()
    assert "extern" not in code(path)
