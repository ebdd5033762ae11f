"""What a restarted server must know of a container beyond what the depot knows. It lies beside the container's snapshot."""

from __future__ import annotations

import msgspec

VERSION = 1


class SavedJob(msgspec.Struct, frozen=True):
    """``tag``: the name in syslog."""

    discards_output: bool = False
    tag: bytes | None = None


class SavedContainer(msgspec.Struct, frozen=True):
    """``handle`` None: its id is its handle. ``grace_s`` None: it is never destroyed for want of connections.

    ``burst``: the burst that a client has asked for, where the one in force had to be larger.
    """

    handle: bytes | None = None
    grace_s: int | None = None
    jobs: dict[str, SavedJob] = {}
    burst: int | None = None
    version: int = VERSION


def encode(saved: SavedContainer) -> bytes:
    return msgspec.json.encode(saved)


def decode(data: bytes) -> SavedContainer:
    """ValueError: it is none, or of a later version."""
    saved = msgspec.json.decode(data, type=SavedContainer)
    if saved.version > VERSION:
        raise ValueError(f"version: expected at most {VERSION}, got {saved.version}")
    return saved
