"""The outbox: events on disk until the server has them. An event is repeated with identical bytes, and the order is kept.

    N.event    to be sent
    N.repeat   an unregister that the server has; its port rests, and it is repeated for routers that were away
    N.rested   the same after the port's rest: it is still repeated, but the port is free
    N.damaged  unreadable, or refused by every server; kept for an operator to read

Each event is one file, named by a number that only grows. It is written under another name and renamed, so a half-written
file is never read as an event. The calls block, but are short (a few hundred bytes, no sync), and events are rare.

A renamed file survives a kill of the agent, but it survives a crash of the host only once it is synced, which takes milliseconds.
Syncing each event delayed the event loop, although most events are sent before the sync would return. So only events that
wait (no bus, no listener) are synced, in a thread, all of one pass together. A crash of the host may lose the last few seconds.

If a file cannot be written (a full disk), the attempt is repeated while its event waits. Until it succeeds the event is in memory
only: it is sent as usual, but is lost if the agent is killed while the bus is away.
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
#: In seconds. A first staging reply in doubt is dropped after this time: no controller still waits for the second one.
_DOUBT_S: Final = 86400.0


class Kept(msgspec.Struct, frozen=True):
    """An event as the outbox stores it.

    ``listener``: it must reach a subscriber, not only the server (droplet.exited). ``once``: it is never sent twice, since its
    receiver counts messages (a first staging reply). ``instead``: a smaller payload for a server that refuses this one.
    """

    subject: str
    payload: bytes
    listener: bool = False
    once: bool = False
    instead: bytes = b""

    @property
    def repeats(self) -> bool:
        """True for an unregister: it stays in the outbox after the server has it, and is repeated for routers that were away."""
        return self.subject == OUTBOUND[RouterUnregister]


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    number: int
    kept: Kept


class Outbox:
    """The events of this agent. The files are read once, at the start; from then on they are written for the next agent only.

    An event is in one of three sets: to be sent (iteration, `len`, `in`), in doubt (sent once, arrival unknown, never sent
    again), or ``repeats`` (the server has it, and it is repeated; by number). ``rested``: numbers of ``repeats`` whose port has
    rested. ``damaged``: names and errors of the files that could not be read.
    """

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
        elif age_s < _DOUBT_S:  # the former agent may have sent it
            self._doubtful[entry.number] = entry
        else:
            path.unlink()

    def add(self, kept: Kept) -> OutboxEntry:
        """Adds an event in memory. `write` writes its file."""
        entry = self._entries[self._next] = OutboxEntry(self._next, kept)
        self._next += 1
        return entry

    def write(self, entry: OutboxEntry) -> None:
        """Writes the file of an event. After OSError (a full disk) no part of the file is left; the event can still be sent."""
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
        """Mark an event as sent with unknown arrival; it is not sent again. Idempotent."""
        if (entry := self._entries.pop(number, None)) is not None:
            self._doubtful[number] = entry

    def doubted(self, subject: str) -> tuple[int, ...]:
        """Numbers of the events in doubt with this subject."""
        return tuple(number for number, one in self._doubtful.items() if one.kept.subject == subject)

    def keep(self, number: int) -> None:
        """Move a sent event to ``repeats``. Idempotent. After OSError the file is unchanged: the next agent sends the event again."""
        if (entry := self._entries.pop(number, None)) is not None:
            self.repeats[number] = entry
            self._rename(number, EVENT, REPEAT)

    def rest(self, number: int) -> None:
        """Note that the port of a repeated unregister has rested. After OSError the next agent lets the port rest again."""
        if number in self.repeats and number not in self.rested:
            self.rested.add(number)
            self._rename(number, REPEAT, RESTED)

    def _rename(self, number: int, old: str, new: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # the file could not be written, which was logged then
            self._path(number, old).rename(self._path(number, new))

    def take_unsynced(self) -> tuple[int, ...]:
        """The waiting events that were written since the last call, for `sync`."""
        taken, self._unsynced = self._unsynced, set()
        return tuple(sorted(number for number in taken if number in self._entries))

    def sync(self, numbers: Iterable[int]) -> None:
        """Syncs these events to the disk. Blocks, so call it in a thread. After OSError a crash of the host may lose them."""
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):  # the event was sent and removed meanwhile
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
        """Removes an event and its file. Idempotent. After OSError the file is left: the next agent sends the event again."""
        if self._forget(number):
            for suffix in _SUFFIXES:
                self._path(number, suffix).unlink(missing_ok=True)

    def set_aside(self, number: int) -> None:
        """Removes an event that every server refuses, but leaves its file as `*.damaged`. OSError as for `remove`."""
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
