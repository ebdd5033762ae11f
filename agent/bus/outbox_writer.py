"""Writes before anything is sent: the agent's memory, then the event's file.

Invariant: an event leaves only after everything that was marked in the memory before it is on disk, and after its own file is
written or could not be. Only one of the two, memory or outbox, may forget it at a time: `on_kept` is called when the file is
there. If the disk does not take the file, `on_kept` is called when the event has left instead. Until then the memory still has
what the event follows from, so an agent that is killed with a full disk and no bus leaves the next one enough to publish.

A file that the disk does not take is tried again in each pass of `sync` while its event waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from agent.bus.outbox import Outbox, OutboxEntry
from agent.logs import Log

#: Events between two barriers: at most so many are repeated when the connection dies.
BATCH: Final = 16
SYNC_PAUSE_S = 1.0


class WriteAhead(Protocol):
    """The memory, as a publisher needs it (agent/memory/ahead.py)."""

    @property
    def generation(self) -> int: ...

    async def wait_written(self, generation: int) -> None: ...


class NothingAhead:
    """Where nothing is remembered there is nothing to wait for."""

    generation = 0

    async def wait_written(self, generation: int) -> None:
        return None


class _Unwritten(NamedTuple):
    entry: OutboxEntry
    generation: int
    on_kept: Callable[[], None] | None


class OutboxWriter:
    """``on_progress`` is called when something may leave that could not before."""

    def __init__(
        self, outbox: Outbox, ahead: WriteAhead, log: Log, *, on_progress: Callable[[], None]
    ) -> None:
        self._outbox = outbox
        self._ahead = ahead
        self._log = log
        self._on_progress = on_progress
        self._durable = 0
        """The memory's generation that is known to be written."""
        self._unwritten: dict[int, _Unwritten] = {}
        self._failed: dict[int, _Unwritten] = {}
        """By number: what the disk did not take."""
        self._to_write = asyncio.Event()

    def add(self, entry: OutboxEntry, on_kept: Callable[[], None] | None) -> None:
        """To be written by `run`."""
        self._unwritten[entry.number] = _Unwritten(entry, self._ahead.generation, on_kept)
        self._to_write.set()

    def request_memory(self) -> int:
        """The generation that is to be on disk before a message that is made now may leave."""
        generation = self._ahead.generation
        if generation > self._durable:
            self._to_write.set()
        return generation

    def has_memory(self, generation: int) -> bool:
        """True once that generation is on disk."""
        return generation <= self._durable

    def may_leave(self, number: int) -> bool:
        """True once the event is on disk, or the disk did not take it."""
        return number not in self._unwritten

    def no_longer_needed(self, number: int) -> None:
        """The event has left, or was dropped."""
        if (one := self._failed.pop(number, None)) is not None:
            self._note_kept(one)

    async def run(self) -> None:
        """For a TaskGroup: for ever."""
        self._to_write.set()  # an error may have ended this before
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
                    await asyncio.sleep(0)  # 0.1 ms each: others have their turn between
            self._on_progress()

    def _write(self, one: _Unwritten) -> None:
        entry = one.entry
        del self._unwritten[entry.number]
        if entry.number in self._outbox:  # else it was dropped meanwhile
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
        """The first error ends the pass: the disk is still full."""
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
        except Exception as e:  # it costs its own event only
            self._log.exception("outbox_note_failed", subject=one.entry.kept.subject, error=repr(e))

    async def sync(self) -> None:
        """For a TaskGroup: for ever. What has waited for a whole pause is worth a sync."""
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
