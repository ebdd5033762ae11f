"""Puts tests/ on the module search path: helpers that unit tests share with other tests are there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
