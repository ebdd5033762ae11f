"""One name, one thing: no class name twice, and what everything agrees on is written down once."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
ROOMS = ("agent", "container", "rootfs_builder", "wsh")


def sources() -> Iterator[tuple[str, ast.Module]]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_a_class_name_has_one_meaning() -> None:
    """In the whole tree, so that a reader needs no import to know which one is meant."""
    places = defaultdict(list)
    for place, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(place)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def _documentation(tree: ast.Module) -> set[int]:
    """Constants that are docstrings, or stand alone as one."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def _is_mebibyte(node: ast.AST) -> bool:
    match node:
        case ast.BinOp(ast.Constant(1), ast.LShift(), ast.Constant(20)):
            return True
        case ast.BinOp(ast.Constant(1024), ast.Mult(), ast.Constant(1024)):
            return True
    return False


@pytest.mark.parametrize(
    ("what", "home"),
    [
        ("vcap's id", "wsh/vcap.py"),
        ("vcap's home", "wsh/vcap.py"),
        ("a mebibyte", "wsh/units.py"),
        ("the pool network", "container/defaults.py"),
    ],
)
def test_what_everything_agrees_on_stands_once(what: str, home: str) -> None:
    """A second place would be forgotten when the first one changes. Paths below the home are not meant, as they name files."""
    found = []
    for place, tree in sources():
        documentation = _documentation(tree)
        for node in ast.walk(tree):
            value = node.value if isinstance(node, ast.Constant) and id(node) not in documentation else None
            is_meant = {
                "vcap's id": type(value) is int and value == 2000,
                "vcap's home": isinstance(value, str) and value in ("/home/vcap", "home/vcap"),
                "a mebibyte": _is_mebibyte(node),
                "the pool network": value == "10.254.0.0/16",
            }
            if is_meant[what]:
                found.append(place)
    assert set(found) == {home}


def test_the_glossary_names_classes_that_are_there() -> None:
    """A class that was renamed is renamed there too."""
    known = {node.name for _, tree in sources() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    text = (ROOT / "docs/glossary.md").read_text()
    named = {
        name.rsplit(".", 1)[-1] for name in re.findall(r"`([\w.]*[A-Z]\w+)`", text) if not name.isupper()
    }
    assert len(named) > 20
    constants = {"MIB"}
    assert named - known - constants == set()
