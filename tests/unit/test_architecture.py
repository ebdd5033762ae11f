"""ARCHITECTURE.md has a line for each source file, and none for a file that is not there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
ROOMS = ("agent", "buildpacks", "container", "rootfs_builder", "wsh")


def test_the_file_map_is_whole() -> None:
    """A package's `__init__.py` may be left out where it says nothing."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    block = text[text.index("## File map") :].split("```")[1]
    mapped, folder = set[str](), ""
    for line in block.splitlines():
        if match := re.fullmatch(r"([\w/]+)/", line):
            folder = match[1]
        elif match := re.fullmatch(r"  (\S+) +\S.*", line):
            mapped.add(f"{folder}/{match[1]}")
    listed = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True)
    there = {
        name
        for name in listed.stdout.split()
        if name.endswith((".py", ".c", ".h")) and (ROOT / name).is_file()
    }
    silent = {name for name in there if name.endswith("__init__.py")} - mapped

    assert there - mapped - silent == set(), "write a line for each in ARCHITECTURE.md, File map"
    assert mapped - there == set(), "these files are not there any more"
