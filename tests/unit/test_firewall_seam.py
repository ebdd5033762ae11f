"""Only the nftables back end knows nft: whatever else is in the tree passes values to a `Firewall`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
BACK_END = ROOT / "container/network/firewall/nftables"
#: What a text for nft(8) cannot do without.
SYNTAX = re.compile(
    r"\b(?:add|delete|flush|insert|list) (?:chain|element|map|rule|set|table)\b|\b[io]ifname\b|\bip [sd]addr\b"
    r"|\bct (?:state|status)\b|\bvmap\b|\b[cm]_(?:in|inner|outer|from|fwd|pre|out|post|port|reject)\b"
)


def texts(source: str) -> Iterator[str]:
    """All strings of a file but for docstrings, parts of f-strings too."""
    tree = ast.parse(source)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def found_in(folder: Path) -> set[str]:
    files = [path for path in folder.rglob("*.py") if not path.is_relative_to(BACK_END)]
    return {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        for text in texts(path.read_text())
        if (match := SYNTAX.search(text))
    }


@pytest.mark.parametrize("folder", ["container", "agent"])
def test_nothing_outside_of_the_back_end_speaks_nft(folder: str) -> None:
    """A second back end can then be added without touching `networks.py`."""
    assert found_in(ROOT / folder) == set()


def test_the_scan_finds_nft_where_it_is() -> None:
    """Else it proves nothing."""
    found = {match[0] for text in texts((BACK_END / "text.py").read_text()) if (match := SYNTAX.search(text))}
    assert {"add table", "add chain", "ip daddr"} <= found


def test_only_the_list_of_back_ends_names_one() -> None:
    """`networks.py` knows the contract alone."""
    importing = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "container").rglob("*.py")
        if not path.is_relative_to(BACK_END) and "firewall.nftables" in path.read_text()
    }
    assert importing == {"container/network/firewall/backends.py"}
