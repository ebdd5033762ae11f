"""What leaves, in the order in which it was said: events and words in one queue, one task that empties it.

    event   in the outbox until the barrier behind it has passed; an exit until somebody listened, too
    word    sent now or not at all

An exit that nobody listens to waits aside and is asked about again; what is behind it goes on
(docs/bus.md, "Events without a listener").

The receiver of staging replies counts them: the first message in its inbox is the first reply, the next one the second. So
a first reply whose arrival is unknown (its barrier did not pass, or the agent ended before it did) is not sent again, and
the second one is sent twice: if the first had arrived, the second counts; if not, one copy passes for a first reply, which
does no harm, and the other one counts. What comes after the second is ignored.

What is published must be known to the next agent, should this one be killed the moment after. So each message waits at its
place in the queue until the memory has written what was marked before the message was made (`WriteAhead`); then an event is
written to the outbox; then it leaves. Whoever is told of an event's writing (`on_kept`) need no longer remember that it is to
be published.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from agent.bus.outbox import Kept, Outbox, OutboxEntry
from agent.bus.wire import BusError, Connection, Unsendable
from agent.logs import Log

LISTENER_RETRY_S = 0.2
LISTENER_PATIENCE_S = 60.0
BATCH = 16  # events between two barriers: as many are repeated, at most, when the link dies
LIMIT = 10_000
SYNC_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class UnstoredMessage:
    """``generation``: of the memory, as it was when the word was made."""

    subject: str
    payload: bytes
    reply: str = ""
    generation: int = 0


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


@dataclass(frozen=True, slots=True)
class Unheard:
    entry: OutboxEntry
    since_s: float


class Sender:
    """``on_passed``: an event that is to be repeated has passed the barrier; True: it stays in the outbox for that."""

    def __init__(
        self,
        outbox: Outbox,
        log: Log,
        *,
        on_passed: Callable[[int], bool],
        ahead: WriteAhead | None = None,
        listener_patience_s: float = LISTENER_PATIENCE_S,
    ) -> None:
        self._outbox = outbox
        self._on_passed = on_passed
        self._log = log
        self._ahead = ahead or NothingAhead()
        self._durable = 0
        """The memory's generation that is known to be written."""
        self._unwritten: dict[int, _Unwritten] = {}
        self._to_write = asyncio.Event()
        self._patience_s = listener_patience_s
        self._connection: Connection | None = None
        self._inbox_prefix = ""
        self._queue: deque[OutboxEntry | UnstoredMessage] = deque()
        self._unheard: dict[int, Unheard] = {}
        self._retry_at_s = 0.0
        self._asked: dict[str, bool] = {}
        """Inbox of an exit in flight: whether the server has said that nobody listens."""
        self._in_flight: list[OutboxEntry] = []
        self._waits: dict[int, Callable[[], None]] = {}
        """Number of an event: what to call when the server has it."""
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()

    # -- said --------------------------------------------------------------------------------------------------

    def publish_event(
        self,
        kept: Kept,
        passed: Callable[[], None] | None = None,
        *,
        on_kept: Callable[[], None] | None = None,
    ) -> int:
        """The event's number. ``passed``: called when the barrier behind it has passed, by this agent or never. ``on_kept``:
        called when the outbox has it on disk, or could not have it."""
        entry = self._outbox.add(kept)
        if passed is not None:
            self._waits[entry.number] = passed
        self._unwritten[entry.number] = _Unwritten(entry, self._ahead.generation, on_kept)
        self._to_write.set()
        if len(self._outbox) > LIMIT:  # a bus that is away for days: the oldest are of no use to anybody
            oldest = next(iter(self._outbox))
            self._log.error("outbox_full_oldest_dropped", subject=oldest.kept.subject, limit=LIMIT)
            self._drop(oldest.number)
        self._put(entry)
        return entry.number

    def repeat(self, ones: Iterable[OutboxEntry | UnstoredMessage]) -> None:
        """Once more what the server has already, in this form; what is queued already is not queued twice. A word is not
        waited for: a thousand of them must not hold up the registers behind them."""
        numbers = {one.number for one in self._queue if isinstance(one, OutboxEntry)}
        words = {one.payload for one in self._queue if isinstance(one, UnstoredMessage)}
        for one in ones:
            is_queued = one.number in numbers if isinstance(one, OutboxEntry) else one.payload in words
            if not is_queued and self._connection is not None:
                self._put(one)

    def publish(self, word: UnstoredMessage) -> None:
        generation = self._ahead.generation
        if generation > self._durable:
            self._to_write.set()
        self._put(replace(word, generation=generation))

    def _put(self, one: OutboxEntry | UnstoredMessage) -> None:
        self._settled.clear()
        if self._connection is not None:  # without one, an event waits in the outbox and a word is over
            self._queue.append(one)
            self._wake.set()

    # -- written before it is sent -----------------------------------------------------------------------------

    async def write(self) -> None:
        """For a TaskGroup: for ever. Lets go what waits at the head of the queue."""
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
                    self._wake.set()
                    await asyncio.sleep(0)  # 0.1 ms each: others have their turn between
            self._wake.set()

    def _write(self, one: _Unwritten) -> None:
        entry = one.entry
        if entry.number in self._outbox:  # else it was dropped meanwhile
            try:
                self._outbox.write(entry)
            except OSError as e:
                self._log.error(
                    "outbox_not_written",
                    subject=entry.kept.subject,
                    error=str(e),
                    consequence="lost if the agent ends",
                )
        del self._unwritten[entry.number]
        if one.on_kept is None:
            return
        try:
            one.on_kept()
        except Exception as e:  # it costs its own event only
            self._log.exception("outbox_note_failed", subject=one.entry.kept.subject, error=repr(e))

    def _is_ready(self, one: OutboxEntry | UnstoredMessage) -> bool:
        if isinstance(one, UnstoredMessage):
            return one.generation <= self._durable
        return one.number not in self._unwritten

    @property
    def unsent(self) -> int:
        """Events that are still to be told."""
        return len(self._outbox)

    @property
    def waiting(self) -> frozenset[bytes]:
        """Their payloads."""
        return frozenset(entry.kept.payload for entry in self._outbox)

    @property
    def unheard(self) -> int:
        """Exits that the server has taken and nobody listened to, so far."""
        return len(self._unheard)

    async def wait_settled(self) -> None:
        """Until every event is told and every word has left."""
        while self._outbox or self._queue:
            self._settled.clear()
            await self._settled.wait()

    async def sync(self) -> None:
        """For a TaskGroup: for ever. What has waited for a whole pause is worth a sync."""
        waiting: tuple[int, ...] = ()
        while True:
            await asyncio.sleep(SYNC_PAUSE_S)
            if waiting:
                try:
                    await asyncio.to_thread(self._outbox.sync, waiting)
                except OSError as e:
                    self._log.error("outbox_not_synced", error=str(e), consequence="lost if the host crashes")
            waiting = self._outbox.take_unsynced()

    # -- the connection's life ---------------------------------------------------------------------------------

    def connected(self, connection: Connection, inbox_prefix: str) -> None:
        """All kept events go first, in their order."""
        self._connection, self._inbox_prefix = connection, inbox_prefix
        self._queue = deque(self._outbox)
        self._wake.set()

    def disconnected(self) -> None:
        self._connection = None
        self._queue.clear()
        self._unheard.clear()
        for entry in self._in_flight:
            if entry.kept.once:
                self._outbox.doubt(entry.number)
        self._in_flight.clear()
        self._wake.set()

    def note_nobody(self, inbox: str) -> None:
        """From the hand-over, so before the PONG of the barrier behind it."""
        if inbox in self._asked:
            self._asked[inbox] = True

    # -- sending -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For a TaskGroup: for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_retry_s()):
                    await self._wake.wait()
            self._wake.clear()
            while (connection := self._connection) is not None and (batch := self._take_batch()):
                try:
                    await self._send(connection, batch)
                except BusError as e:
                    self._log.warning(
                        "bus_send_failed", error=str(e), consequence="events stay in the outbox"
                    )
                    if self._connection is connection:
                        self.disconnected()
                    await connection.close()
                finally:
                    self._asked.clear()
                    self._in_flight.clear()
            if not self._queue and not self._outbox:
                self._settled.set()

    def _until_retry_s(self) -> float | None:
        """None: nobody is to be asked again, or there is no connection to ask over."""
        if not self._unheard or self._connection is None:
            return None
        return max(0.0, self._retry_at_s - time.monotonic())

    def _take_batch(self) -> list[OutboxEntry | UnstoredMessage]:
        """The unheard are older than what is queued: they go first when it is their time, or when another exit leaves."""
        batch: list[OutboxEntry | UnstoredMessage] = []
        while self._queue and len(batch) < BATCH and self._is_ready(self._queue[0]):
            batch.append(self._queue.popleft())
        now_s = time.monotonic()
        if self._unheard and (now_s >= self._retry_at_s or any(_wants_listener(one) for one in batch)):
            batch[:0] = [unheard.entry for unheard in self._unheard.values()]
            self._retry_at_s = now_s + LISTENER_RETRY_S
        return batch

    async def _send(self, connection: Connection, batch: list[OutboxEntry | UnstoredMessage]) -> None:
        sent: list[tuple[OutboxEntry, str]] = []
        for one in batch:
            if isinstance(one, UnstoredMessage):
                await self._publish(connection, one.subject, one.payload, one.reply)
                continue
            reply = ""
            if _wants_listener(one):
                reply = f"{self._inbox_prefix}.exit.{one.number}.{time.monotonic_ns()}"
                self._asked[reply] = False
            self._in_flight.append(one)
            if await self._publish_event(connection, one, reply):
                sent.append((one, reply))
        if sent:
            await connection.barrier()
            self._in_flight.clear()
            for entry, inbox in sent:
                self._settle(entry, nobody=self._asked.get(inbox, False))

    async def _publish_event(self, connection: Connection, entry: OutboxEntry, reply: str) -> bool:
        """False: no server takes it; it is out of the way."""
        kept = entry.kept
        copies = 2 if not kept.once and self._outbox.doubted(kept.subject) else 1
        for _ in range(copies):
            if await self._publish(connection, kept.subject, kept.payload, reply):
                continue
            if not (kept.instead and await self._publish(connection, kept.subject, kept.instead, reply)):
                self._drop(entry.number, aside=True)
                return False
        return True

    async def _publish(self, connection: Connection, subject: str, payload: bytes, reply: str) -> bool:
        """False: the fault is the message's, which has been logged."""
        try:
            await connection.publish(subject, payload, reply)
        except Unsendable as e:
            self._log.error("bus_message_unsendable", subject=subject[:200], error=str(e))
            return False
        return True

    def _settle(self, entry: OutboxEntry, *, nobody: bool) -> None:
        """The server has it; for an exit, did it have a listener?"""
        if nobody:
            now_s = time.monotonic()
            unheard = self._unheard.setdefault(entry.number, Unheard(entry, now_s))
            if now_s - unheard.since_s < self._patience_s:
                self._retry_at_s = now_s + LISTENER_RETRY_S
                return
            self._log.warning(
                "bus_event_without_listener", subject=entry.kept.subject, tried_s=self._patience_s
            )
        if (passed := self._waits.pop(entry.number, None)) is not None:
            passed()
        for doubted in () if entry.kept.once else self._outbox.doubted(entry.kept.subject):
            self._drop(doubted)  # it is answered, whatever became of the first reply
        if entry.kept.repeats and self._on_passed(entry.number):
            self._keep(entry.number)
        else:
            self._drop(entry.number)

    def _keep(self, number: int) -> None:
        try:
            self._outbox.keep(number)
        except OSError as e:
            self._log.error("outbox_not_renamed", error=str(e), consequence="told again by the next agent")

    def _drop(self, number: int, *, aside: bool = False) -> None:
        self._unheard.pop(number, None)
        self._waits.pop(number, None)
        try:
            if aside:
                self._outbox.set_aside(number)
            else:
                self._outbox.remove(number)
        except OSError as e:
            self._log.error("outbox_not_removed", error=str(e), consequence="told again by the next agent")


def _wants_listener(one: OutboxEntry | UnstoredMessage) -> bool:
    return isinstance(one, OutboxEntry) and one.kept.listener
