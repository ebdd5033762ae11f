"""Events that must not be lost, on disk until the server has them. In order, byte for byte the same when repeated.

One file an event, named by a number that only grows; written beside and renamed, so that a half-written one is none. Blocking but
small (a few hundred bytes); events are rare against everything else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

LIMIT = 10_000


class Kept(msgspec.Struct, frozen=True):
    """``listener``: must reach somebody, not only the server (droplet.exited)."""

    subject: str
    payload: bytes
    listener: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    number: int
    kept: Kept


class Outbox:
    def __init__(self, directory: Path) -> None:
        self._dir = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries: dict[int, Kept] = {}
        self.damaged: list[str] = []
        for path in sorted(directory.glob("*.event")):
            try:
                self._entries[int(path.stem)] = msgspec.msgpack.decode(path.read_bytes(), type=Kept)
            except (msgspec.MsgspecError, ValueError) as e:
                path.rename(path.with_suffix(".damaged"))
                self.damaged.append(f"{path.name}: {e}")
        self._next = max(self._entries, default=0) + 1

    def put(self, kept: Kept) -> Entry:
        entry = Entry(self._next, kept)
        self._next += 1
        path = self._path(entry.number)
        new = path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.msgpack.encode(kept))
            os.fdatasync(fd)
        finally:
            os.close(fd)
        new.rename(path)
        self._entries[entry.number] = kept
        if len(self._entries) > LIMIT:  # a bus that is away for days: the oldest are of no use to anybody
            self.remove(next(iter(self._entries)))
        return entry

    def remove(self, number: int) -> None:
        """Idempotent."""
        if self._entries.pop(number, None) is not None:
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._dir / f"{number:012d}.event"

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter([Entry(number, kept) for number, kept in self._entries.items()])
