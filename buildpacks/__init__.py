"""The buildpacks that ship with Garrison: Heroku's contract (bin/detect, bin/compile, bin/release), run in the stack.

They are data of the wheel: the agent binds `path()` read-only into a staging container and never runs them itself.
`ORDER` is the order of detection; the more particular come first, because a Python app often has a Procfile too.
"""

from __future__ import annotations

from pathlib import Path

ORDER = ("python", "staticfile", "procfile")


def path() -> Path:
    """The directory that holds one directory for each name in `ORDER`."""
    return Path(__file__).resolve().parent
