"""Only container/linux calls libc and ioctl: system calls are in one folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "container/linux"
#: What may use ctypes all the same, and why.
OTHERS: Final[Mapping[str, str]] = {
    "container/network/firewall/nftables/library.py": "libnftables is a library and no system call",
    "agent/dev/host.py": "it looks for that library, and calls nothing",
}


def calls_of(source: str) -> Iterator[str]:
    """ctypes by any import, and every `ioctl`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.split(".")[0] == "ctypes")
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] == "ctypes":
                yield str(node.module)
            yield from (one.name for one in node.names if one.name in ("ioctl", "ctypes"))
        elif isinstance(node, ast.Attribute) and node.attr == "ioctl":
            yield "ioctl"


@pytest.mark.parametrize("folder", ["container", "agent"])
def test_system_calls_are_in_one_folder(folder: str) -> None:
    """Their numbers, their error handling and their traps are then read in one place."""
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*.py")
        if not path.is_relative_to(FOLDER) and any(calls_of(path.read_text()))
    }
    assert found == {path for path in OTHERS if path.startswith(folder)}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ctypes", ["ctypes"]),
        ("import ctypes.util as u", ["ctypes.util"]),
        ("from ctypes import CDLL", ["ctypes"]),
        ("import fcntl\nfcntl.ioctl(0, 1)", ["ioctl"]),
        ("from fcntl import ioctl", ["ioctl"]),
        ("import fcntl\nfcntl.flock(0, 2)", []),
    ],
)
def test_what_the_scan_finds(source: str, found: list[str]) -> None:
    """Each way to a system call that is not Python's own."""
    assert list(calls_of(source)) == found
