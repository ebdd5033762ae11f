"""Finds the two C programs: ``wshd``, a container's init, and ``wsh``, its shell client (PROTOCOL.md)."""

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
    """Path of wshd, from the directory ``GARRISON_WSH_BIN`` if that is set (for a sanitized build, for example).

    FileNotFoundError: it is not built.
    """
    return _find("wshd")


def wsh_path() -> Path:
    """Path of wsh, found like wshd."""
    return _find("wsh")
