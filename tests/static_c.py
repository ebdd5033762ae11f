"""Small programs in C that tests run in containers, whatever the stack."""

from __future__ import annotations

import subprocess
from pathlib import Path

FORK_BOMB = Path(__file__).with_name("fork_bomb.c")


def build_static(source: Path, program: Path) -> Path:
    """``program``, which needs no library of its stack. CalledProcessError: the compiler refused ``source``."""
    options = ["-static", "-Os", "-s", "-Wall", "-Wextra", "-Wno-unused-result"]
    subprocess.run(["musl-gcc", *options, "-o", program, source], check=True)
    return program
