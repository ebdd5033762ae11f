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
    """What is in memory is what there is to tell; the files are for the next agent. ``damaged``: what could not be read
    at the start, and stays beside as `*.damaged`."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries: dict[int, Entry] = {}
        self.damaged: list[str] = []
        for half_written in directory.glob("*.new"):
            half_written.unlink()
        for path in sorted(directory.glob("*.event")):
            try:
                number = int(path.stem)
                self._entries[number] = Entry(number, msgspec.msgpack.decode(path.read_bytes(), type=Kept))
            except (msgspec.MsgspecError, ValueError, OSError) as e:
                path.rename(path.with_suffix(".damaged"))
                self.damaged.append(f"{path.name}: {e}")
        self._next = max(self._entries, default=0) + 1

    def add(self, kept: Kept) -> Entry:
        """In memory; `write` makes it last."""
        entry = self._entries[self._next] = Entry(self._next, kept)
        self._next += 1
        return entry

    def write(self, entry: Entry) -> None:
        """OSError: the disk does not take it (full, say); no half of it stays, and the entry is told all the same."""
        path = self._path(entry.number)
        new = path.with_suffix(".new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb", buffering=0) as file:
                left = memoryview(msgspec.msgpack.encode(entry.kept))
                while left:
                    left = left[file.write(left) :]
                os.fdatasync(file)
            new.rename(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def remove(self, number: int) -> None:
        """Idempotent. OSError: the file stays, so the next agent tells it once more."""
        if self._entries.pop(number, None) is not None:
            self._path(number).unlink(missing_ok=True)

    def set_aside(self, number: int) -> None:
        """What no server takes: out of the way, and left for a person to read. OSError as above."""
        if self._entries.pop(number, None) is not None and (path := self._path(number)).exists():
            path.rename(path.with_suffix(".damaged"))

    def _path(self, number: int) -> Path:
        return self._dir / f"{number:012d}.event"

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))
