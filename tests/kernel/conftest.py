"""Kernel tests run in a test host (tests/testhost.py). After each test the host must be as it was before."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from host_fixtures import base_dir, no_leaks, test_host

__all__ = ["base_dir", "no_leaks", "test_host"]
