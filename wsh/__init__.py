"""Where the two C programs are: ``wshd``, a container's init, and ``wsh``, its shell client (PROTOCOL.md)."""

from __future__ import annotations

import os
from pathlib import Path

_HERE = Path(__file__).parent


def _find(program: str) -> Path:
    places = [Path(directory) for directory in (os.environ.get("GARRISON_WSH_BIN"),) if directory] or [
        _HERE / "_bin"
    ]
    for place in places:
        if (place / program).is_file():
            return place / program
    looked = ", ".join(str(place) for place in places)
    raise FileNotFoundError(f"{program}: not built (looked in {looked}); run `make setup`")


def wshd_path() -> Path:
    """Path of wshd. ``GARRISON_WSH_BIN`` names another directory, e.g. that of the sanitized build."""
    return _find("wshd")


def wsh_path() -> Path:
    """Path of wsh."""
    return _find("wsh")
