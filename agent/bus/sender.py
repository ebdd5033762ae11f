"""Sends all outgoing messages: one queue for events and unstored messages, emptied in order by one task.

    event             kept in the outbox until the barrier after it has passed; an exit also until it had a listener
    unstored message  sent now or dropped; the present state is published again after each connect

Invariant: messages are sent in the order in which they were published. With separate queues a register could overtake an earlier
unregister of the same route, and routers would then drop a live route or keep a dead one. The one exception is an exit without a
listener: it is set aside and tried again, while the messages behind it are sent (docs/bus.md, "Events without a listener").

A successful publish does not prove that the server has the message. A barrier does: its PONG proves that the server has everything
sent before it. One barrier follows each batch. If the connection is lost before the PONG, the events of the batch are sent again,
with identical bytes.

A first staging reply must never be sent again, because its receiver counts: the first message in the inbox is the first reply, the
next one the second. A first reply is in doubt if the connection or the agent ended before its barrier passed. The second reply is
then sent twice. If the first reply had arrived, the receiver takes the first copy for the second reply and ignores the other.
If it had not, the receiver takes the first copy for a first reply, which is harmless, and the second copy counts.

The next agent must know what this one has published, even if this one is killed right afterwards. So a message waits at its place in
the queue until everything marked in the memory before it is on disk; an event also waits until its file is written
(outbox_writer.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from agent.bus.outbox import Kept, Outbox, OutboxEntry
from agent.bus.outbox_writer import BATCH, NothingAhead, OutboxWriter, WriteAhead
from agent.bus.wire import BusError, Connection, Unsendable
from agent.logs import Log

LISTENER_RETRY_S = 0.2
LISTENER_PATIENCE_S = 60.0
LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class UnstoredMessage:
    """A message that is sent at most once. ``generation``: of the memory, when the message was made."""

    subject: str
    payload: bytes
    reply: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Unlistened:
    """An exit that the server has, but that no subscriber received. ``since_s``: of the first try, monotonic seconds."""

    entry: OutboxEntry
    since_s: float


class Sender:
    """``on_passed``: called with the number of an unregister whose barrier has passed; True keeps it in the outbox, to be repeated.
    ``listener_patience_s``: how long an exit without a listener is tried again."""

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
        self._patience_s = listener_patience_s
        self._connection: Connection | None = None
        self._inbox_prefix = ""
        self._queue: deque[OutboxEntry | UnstoredMessage] = deque()
        self._unlistened: dict[int, Unlistened] = {}
        self._retry_at_s = 0.0
        self._asked: dict[str, bool] = {}
        """By reply inbox of an exit in flight: whether the server has replied that it has no listener."""
        self._in_flight: list[OutboxEntry] = []
        self._waits: dict[int, Callable[[], None]] = {}
        """By number of an event: called when the server has it."""
        self._wake = asyncio.Event()
        self.writer = OutboxWriter(outbox, ahead or NothingAhead(), log, on_progress=self._wake.set)
        self._settled = asyncio.Event()

    # -- publishing --------------------------------------------------------------------------------------------

    def publish_event(
        self,
        kept: Kept,
        passed: Callable[[], None] | None = None,
        *,
        on_kept: Callable[[], None] | None = None,
    ) -> int:
        """Queues an event and returns its number.

        ``passed``: called when the barrier after it has passed; never if that happens under a later agent. ``on_kept``: called
        when its file exists or, if the file could not be written, when it was sent or dropped.
        """
        entry = self._outbox.add(kept)
        if passed is not None:
            self._waits[entry.number] = passed
        self.writer.add(entry, on_kept)
        if len(self._outbox) > LIMIT:  # the bus has been away for days: the oldest event has the least use
            oldest = next(iter(self._outbox))
            self._log.error("outbox_full_oldest_dropped", subject=oldest.kept.subject, limit=LIMIT)
            self._drop(oldest.number)
        self._put(entry)
        return entry.number

    def repeat(self, ones: Iterable[OutboxEntry | UnstoredMessage]) -> None:
        """Queues unregisters that the server has already, except those that are in the queue. A batch of unstored messages needs no
        barrier, so a thousand of them do not delay the registers behind them."""
        numbers = {one.number for one in self._queue if isinstance(one, OutboxEntry)}
        payloads = {one.payload for one in self._queue if isinstance(one, UnstoredMessage)}
        for one in ones:
            is_queued = one.number in numbers if isinstance(one, OutboxEntry) else one.payload in payloads
            if not is_queued and self._connection is not None:
                self._put(one)

    def publish(self, message: UnstoredMessage) -> None:
        """Queues a message; without a connection it is dropped."""
        self._put(replace(message, generation=self.writer.request_memory()))

    def _put(self, one: OutboxEntry | UnstoredMessage) -> None:
        self._settled.clear()
        # without a connection an event waits in the outbox, and an unstored message is dropped
        if self._connection is not None:
            self._queue.append(one)
            self._wake.set()

    @property
    def unsent(self) -> int:
        """The number of events that still wait to be sent, or for their barrier or listener."""
        return len(self._outbox)

    @property
    def waiting(self) -> frozenset[bytes]:
        """The payloads of these events."""
        return frozenset(entry.kept.payload for entry in self._outbox)

    @property
    def unlistened(self) -> int:
        """The number of exits that the server has, but that had no listener so far."""
        return len(self._unlistened)

    async def wait_settled(self) -> None:
        """Waits until the server has every event and the queue is empty."""
        while self._outbox or self._queue:
            self._settled.clear()
            await self._settled.wait()

    # -- the connection's life ---------------------------------------------------------------------------------

    def connected(self, connection: Connection, inbox_prefix: str) -> None:
        """Starts sending over a new connection: first all events of the outbox, in their order."""
        self._connection, self._inbox_prefix = connection, inbox_prefix
        self._queue = deque(self._outbox)
        self._wake.set()

    def disconnected(self) -> None:
        """Drops the queue; the events are still in the outbox. A first staging reply in flight is now in doubt."""
        self._connection = None
        self._queue.clear()
        self._unlistened.clear()
        for entry in self._in_flight:
            if entry.kept.once:
                self._outbox.doubt(entry.number)
        self._in_flight.clear()
        self._wake.set()

    def note_nobody(self, inbox: str) -> None:
        """The server has replied that the exit with this reply inbox had no listener. This reply precedes the barrier's PONG."""
        if inbox in self._asked:
            self._asked[inbox] = True

    # -- sending -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sends batch after batch, until it is cancelled."""
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
        """Seconds until exits without a listener are tried again; None: there are none, or there is no connection."""
        if not self._unlistened or self._connection is None:
            return None
        return max(0.0, self._retry_at_s - time.monotonic())

    def _take_batch(self) -> list[OutboxEntry | UnstoredMessage]:
        """The next messages that may be sent. Exits without a listener are older than the queue: they come first, when their retry
        is due or when another exit is sent."""
        batch: list[OutboxEntry | UnstoredMessage] = []
        while self._queue and len(batch) < BATCH and _is_ready(self._queue[0], self.writer):
            batch.append(self._queue.popleft())
        now_s = time.monotonic()
        if self._unlistened and (now_s >= self._retry_at_s or any(_wants_listener(one) for one in batch)):
            batch[:0] = [one.entry for one in self._unlistened.values()]
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
        """False: the server refuses the event, and it was set aside."""
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
        """False: the message cannot be sent over any connection, which was logged. Raises BusError."""
        try:
            await connection.publish(subject, payload, reply)
        except Unsendable as e:
            self._log.error("bus_message_unsendable", subject=subject[:200], error=str(e))
            return False
        return True

    def _settle(self, entry: OutboxEntry, *, nobody: bool) -> None:
        """The event's barrier has passed. ``nobody``: the event is an exit and had no listener."""
        if nobody:
            now_s = time.monotonic()
            unlistened = self._unlistened.setdefault(entry.number, Unlistened(entry, now_s))
            if now_s - unlistened.since_s < self._patience_s:
                self._retry_at_s = now_s + LISTENER_RETRY_S
                return
            self._log.warning(
                "bus_event_without_listener", subject=entry.kept.subject, tried_s=self._patience_s
            )
        if (passed := self._waits.pop(entry.number, None)) is not None:
            passed()
        for doubted in () if entry.kept.once else self._outbox.doubted(entry.kept.subject):
            self._drop(doubted)  # the second reply settles the request, whether or not the first one arrived
        if entry.kept.repeats and self._on_passed(entry.number):
            self._keep(entry.number)
        else:
            self._drop(entry.number)

    def _keep(self, number: int) -> None:
        try:
            self._outbox.keep(number)
        except OSError as e:
            self._log.error("outbox_not_renamed", error=str(e), consequence="sent again by the next agent")
        self.writer.no_longer_needed(number)

    def _drop(self, number: int, *, aside: bool = False) -> None:
        self._unlistened.pop(number, None)
        self._waits.pop(number, None)
        try:
            if aside:
                self._outbox.set_aside(number)
            else:
                self._outbox.remove(number)
        except OSError as e:
            self._log.error("outbox_not_removed", error=str(e), consequence="sent again by the next agent")
        self.writer.no_longer_needed(number)


def _wants_listener(one: OutboxEntry | UnstoredMessage) -> bool:
    return isinstance(one, OutboxEntry) and one.kept.listener


def _is_ready(one: OutboxEntry | UnstoredMessage, writer: OutboxWriter) -> bool:
    if isinstance(one, UnstoredMessage):
        return writer.has_memory(one.generation)
    return writer.may_leave(one.number)
