"""Write-ahead for the sender: decides when a message may be sent, and writes the files of the outbox.

Invariant: an event is sent only after every change that was marked in the memory before it is on disk, and after its own file has
been written or has failed to be written.

At every moment the memory or the outbox has what the next agent needs to publish the event. So the memory may forget it (`on_kept`)
only when the file exists or, if the file could not be written, when the event was sent. Without this rule an agent that is
killed with a full disk and no bus would lose the event.

A file that could not be written is tried again in each pass of `sync` while its event waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from agent.bus.outbox import Outbox, OutboxEntry
from agent.logs import Log

#: The number of messages between two barriers: at most this many are repeated when the connection is lost.
BATCH: Final = 16
SYNC_PAUSE_S = 1.0


class WriteAhead(Protocol):
    """What a publisher uses of the memory (`agent.memory.Memory`).

    ``generation`` counts the changes that were marked so far. `wait_written` returns when all changes up to that number are on
    disk, or could not be written.
    """

    @property
    def generation(self) -> int: ...

    async def wait_written(self, generation: int) -> None: ...


class NothingAhead:
    """A bus without a memory (in tests) never waits."""

    generation = 0

    async def wait_written(self, generation: int) -> None:
        return None


class _Unwritten(NamedTuple):
    entry: OutboxEntry
    generation: int
    on_kept: Callable[[], None] | None


class OutboxWriter:
    """``on_progress``: called when more messages may be sent than before."""

    def __init__(
        self, outbox: Outbox, ahead: WriteAhead, log: Log, *, on_progress: Callable[[], None]
    ) -> None:
        self._outbox = outbox
        self._ahead = ahead
        self._log = log
        self._on_progress = on_progress
        self._durable = 0
        """The memory's generation that is known to be on disk."""
        self._unwritten: dict[int, _Unwritten] = {}
        self._failed: dict[int, _Unwritten] = {}
        """By number: events whose file could not be written."""
        self._to_write = asyncio.Event()

    def add(self, entry: OutboxEntry, on_kept: Callable[[], None] | None) -> None:
        """Queues an event for `run`, which writes its file."""
        self._unwritten[entry.number] = _Unwritten(entry, self._ahead.generation, on_kept)
        self._to_write.set()

    def request_memory(self) -> int:
        """The generation that must be on disk before a message that is made now may be sent."""
        generation = self._ahead.generation
        if generation > self._durable:
            self._to_write.set()
        return generation

    def has_memory(self, generation: int) -> bool:
        """True once that generation is on disk."""
        return generation <= self._durable

    def may_leave(self, number: int) -> bool:
        """True once the event's file has been written or has failed to be written."""
        return number not in self._unwritten

    def no_longer_needed(self, number: int) -> None:
        """The event was sent or dropped: `on_kept` is called now if the file could not be written."""
        if (one := self._failed.pop(number, None)) is not None:
            self._note_kept(one)

    async def run(self) -> None:
        """Writes queued events, until it is cancelled."""
        self._to_write.set()  # a former run may have ended by an error with events still queued
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            generation = self._ahead.generation
            await self._ahead.wait_written(generation)
            self._durable = max(self._durable, generation)
            due = [one for one in self._unwritten.values() if one.generation <= generation]
            for count, one in enumerate(due, 1):
                self._write(one)
                if count % BATCH == 0:
                    self._on_progress()
                    await asyncio.sleep(0)  # each write takes 0.1 ms: let other tasks run
            self._on_progress()

    def _write(self, one: _Unwritten) -> None:
        entry = one.entry
        del self._unwritten[entry.number]
        if entry.number in self._outbox:  # else the event was dropped meanwhile
            try:
                self._outbox.write(entry)
            except OSError as e:
                self._failed[entry.number] = one
                self._log.error(
                    "outbox_not_written",
                    subject=entry.kept.subject,
                    error=str(e),
                    consequence="sent from memory; written again while it waits",
                )
                return
        self._note_kept(one)

    def _write_again(self) -> None:
        """Stops at the first error: the disk is still full."""
        for number, one in tuple(self._failed.items()):
            try:
                self._outbox.write(one.entry)
            except OSError:
                return
            self._note_kept(self._failed.pop(number))

    def _note_kept(self, one: _Unwritten) -> None:
        if one.on_kept is None:
            return
        try:
            one.on_kept()
        except Exception as e:  # an error of one event must not stop the others
            self._log.exception("outbox_note_failed", subject=one.entry.kept.subject, error=repr(e))

    async def sync(self) -> None:
        """Repeats failed writes and syncs the files of waiting events, until it is cancelled. An event is synced only after it has
        waited for a whole pause: most are sent sooner."""
        waiting: tuple[int, ...] = ()
        while True:
            await asyncio.sleep(SYNC_PAUSE_S)
            self._write_again()
            if waiting:
                try:
                    await asyncio.to_thread(self._outbox.sync, waiting)
                except OSError as e:
                    self._log.error("outbox_not_synced", error=str(e), consequence="lost if the host crashes")
            waiting = self._outbox.take_unsynced()
