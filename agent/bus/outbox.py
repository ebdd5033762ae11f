"""Events that must not be lost, on disk until the server has them. In order, and with identical bytes when repeated.

    N.event    to be sent
    N.repeat   an unregister that the server has; its port rests, and it is repeated for routers that were away
    N.rested   the same, after the rest of its port: only repeated
    N.damaged  could not be read, or no server takes it; left for a person

Each event is one file, named by a number that only grows. It is written under another name and renamed, so a half-written
file is never read as an event. The calls block, but are small (a few hundred bytes, no sync), and events are rare.

A renamed file outlives the agent, but a crash of the host only once it is synced, which takes milliseconds. A sync of each
event held up the event loop, and most events have left by the time it returns. So only events that wait (no bus, no
listener) are synced, in a thread, all of one pass together. A crash of the host within a second may lose an event.

A file that cannot be written (a full disk) is tried again while its event waits. Until then the event is in memory only: it
is sent as usual, but is lost if the agent is killed while the bus is away.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from agent.bus.messages import RouterUnregister
from agent.bus.subjects import OUTBOUND

EVENT: Final = ".event"
REPEAT: Final = ".repeat"
RESTED: Final = ".rested"
_SUFFIXES: Final = frozenset({EVENT, REPEAT, RESTED})
#: Nobody waits for a staging as long as this; a first reply that no second one has followed is given up then.
_DOUBT_S: Final = 86400.0


class Kept(msgspec.Struct, frozen=True):
    """``listener``: must reach somebody, not only the server (droplet.exited). ``once``: never sent a second time, since its
    receiver counts messages (a first staging reply). ``instead``: the payload for a server that does not take one as large
    as this."""

    subject: str
    payload: bytes
    listener: bool = False
    once: bool = False
    instead: bytes = b""

    @property
    def repeats(self) -> bool:
        """It stays here once the server has it, to be repeated for routers that were away."""
        return self.subject == OUTBOUND[RouterUnregister]


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    number: int
    kept: Kept


class Outbox:
    """What is in memory is what there is to send; the files are for the next agent. ``damaged``: what could not be read
    at the start, and stays beside as `*.damaged`.

    Iterated and counted: what is to be sent. ``repeats``: what was sent and is to be repeated, by
    number; ``rested``: those of it whose port has rested."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries: dict[int, OutboxEntry] = {}
        self._doubtful: dict[int, OutboxEntry] = {}
        self.repeats: dict[int, OutboxEntry] = {}
        self.rested: set[int] = set()
        self._unsynced: set[int] = set()
        self.damaged: list[str] = []
        for half_written in directory.glob("*.new"):
            half_written.unlink()
        for path in sorted(directory.iterdir()):
            if path.suffix in _SUFFIXES:
                self._load(path)
        self._next = max((0, *self._entries, *self._doubtful, *self.repeats)) + 1

    def _load(self, path: Path) -> None:
        try:
            entry = OutboxEntry(int(path.stem), msgspec.msgpack.decode(path.read_bytes(), type=Kept))
            age_s = time.time() - path.stat().st_mtime
        except (msgspec.MsgspecError, ValueError, OSError) as e:
            path.rename(path.with_suffix(".damaged"))
            self.damaged.append(f"{path.name}: {e}")
            return
        if path.suffix != EVENT:
            self.repeats[entry.number] = entry
            if path.suffix == RESTED:
                self.rested.add(entry.number)
        elif not entry.kept.once:
            self._entries[entry.number] = entry
        elif age_s < _DOUBT_S:  # whether the former agent had sent it is not known
            self._doubtful[entry.number] = entry
        else:
            path.unlink()

    def add(self, kept: Kept) -> OutboxEntry:
        """In memory; `write` makes it last."""
        entry = self._entries[self._next] = OutboxEntry(self._next, kept)
        self._next += 1
        return entry

    def write(self, entry: OutboxEntry) -> None:
        """OSError: the disk does not take it (full, say); no half of it stays, and the event is sent all the same."""
        path = self._path(entry.number)
        new = path.with_suffix(".new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb", buffering=0) as file:
                left = memoryview(msgspec.msgpack.encode(entry.kept))
                while left:
                    left = left[file.write(left) :]
            new.rename(path)
            self._unsynced.add(entry.number)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def doubt(self, number: int) -> None:
        """It was sent and may or may not have arrived: not to be sent again. Idempotent."""
        if (entry := self._entries.pop(number, None)) is not None:
            self._doubtful[number] = entry

    def doubted(self, subject: str) -> tuple[int, ...]:
        """What was sent there and may or may not have arrived."""
        return tuple(number for number, one in self._doubtful.items() if one.kept.subject == subject)

    def keep(self, number: int) -> None:
        """Sent, and to be repeated. Idempotent. OSError: the file stays as it was, so the next agent sends it once more."""
        if (entry := self._entries.pop(number, None)) is not None:
            self.repeats[number] = entry
            self._rename(number, EVENT, REPEAT)

    def rest(self, number: int) -> None:
        """The rest of its port is over; it is still repeated. OSError: the next agent lets the port rest once more."""
        if number in self.repeats and number not in self.rested:
            self.rested.add(number)
            self._rename(number, REPEAT, RESTED)

    def _rename(self, number: int, old: str, new: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # it could not be written, which has been logged
            self._path(number, old).rename(self._path(number, new))

    def take_unsynced(self) -> tuple[int, ...]:
        """What waits and is not known to be on the disk itself; for `sync`. Each is answered once."""
        taken, self._unsynced = self._unsynced, set()
        return tuple(sorted(number for number in taken if number in self._entries))

    def sync(self, numbers: Iterable[int]) -> None:
        """Blocking, for a thread. OSError: some are not safe from a crash of the host, as all else of that moment."""
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):  # it has left meanwhile
                fd = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
        directory = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def remove(self, number: int) -> None:
        """Idempotent. OSError: the file stays, so the next agent sends it once more."""
        if self._forget(number):
            for suffix in _SUFFIXES:
                self._path(number, suffix).unlink(missing_ok=True)

    def set_aside(self, number: int) -> None:
        """What no server takes: out of the way, and left for a person to read. OSError as above."""
        if self._forget(number):
            for suffix in _SUFFIXES:
                self._rename(number, suffix, ".damaged")

    def _forget(self, number: int) -> bool:
        self.rested.discard(number)
        places: tuple[dict[int, OutboxEntry], ...] = (self._entries, self._doubtful, self.repeats)
        return any(where.pop(number, None) is not None for where in places)

    def _path(self, number: int, suffix: str = EVENT) -> Path:
        return self._dir / f"{number:012d}{suffix}"

    def __contains__(self, number: int) -> bool:
        return number in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[OutboxEntry]:
        return iter(tuple(self._entries.values()))
