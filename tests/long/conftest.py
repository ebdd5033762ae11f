"""Tests that take minutes each: packages, big stacks, documents, a browser. `make test-long` runs them.

Like the kernel's they run in a test host (tests/testhost.py) and leave it as it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from host_fixtures import base_dir, no_leaks, test_host

__all__ = ["base_dir", "no_leaks", "test_host"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Few tests are long so far; whoever reads a green run should know how little it covered."""
    terminalreporter.write_line(
        "test-long: the Python package, a JVM; big stacks, documents and a browser come with what they test"
    )
