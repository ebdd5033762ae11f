"""The buildpacks that ship with Garrison: Heroku's contract (bin/detect, bin/compile, bin/release), run in the stack.

They are data of the wheel. The agent binds `path()` read-only into a staging container, and runs them only there.
"""

from __future__ import annotations

from pathlib import Path

ORDER = ("python", "staticfile", "procfile")
"""The order of detection. A Python app often has a Procfile too, so `procfile` is last."""


def path() -> Path:
    """The directory that holds one directory for each name in `ORDER`."""
    return Path(__file__).resolve().parent
