"""Builds small static C programs, which tests can run in a container of any stack."""

from __future__ import annotations

import subprocess
from pathlib import Path

FORK_BOMB = Path(__file__).with_name("fork_bomb.c")


def build_static(source: Path, program: Path) -> Path:
    """Compile ``source`` to ``program``, with no shared libraries. Returns ``program``. CalledProcessError: the compiler
    failed."""
    options = ["-static", "-Os", "-s", "-Wall", "-Wextra", "-Wno-unused-result"]
    subprocess.run(["musl-gcc", *options, "-o", program, source], check=True)
    return program
