"""Everything that leaves: events and unstored messages in one queue, which one task empties in order.

    event             stays in the outbox until the barrier behind it has passed; an exit also until it had a listener
    unstored message  is sent now or not at all; what is true is published anew after each connect

Invariant: messages leave in the order in which they were published. With one queue for events and one for the others a
register overtook an earlier unregister, and the route lived on. An exit without a listener is the one exception: it waits
aside and is tried again, and what is behind it goes on (docs/bus.md, "Events without a listener").

A published message proves nothing, a barrier does: its PONG says that the server has everything before it. One barrier
follows each batch of events. If the connection dies before the PONG, the batch is sent again with identical bytes.

First staging replies must not be sent again, because their receiver counts: the first message in its inbox is the first
reply, the next one the second. A first reply is in doubt if its barrier did not pass, or if the agent ended before it did.
Then the second reply is sent twice. If the first reply had arrived, the first copy counts as the second reply; if not, one
copy is taken for a first reply, which does no harm, and the other one counts. Receivers ignore what comes later.

The next agent must know what this one has published, also if this one is killed a moment later. So each message waits at its
place in the queue until the memory has written all that was marked before the message was made (`WriteAhead`). Then an event
is written to the outbox, and then it leaves. `on_kept` is called once the outbox has the event: from then on the memory need
not know that it is to be published.
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
    """``generation``: of the memory, as it was when the message was made."""

    subject: str
    payload: bytes
    reply: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Unlistened:
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
        self._patience_s = listener_patience_s
        self._connection: Connection | None = None
        self._inbox_prefix = ""
        self._queue: deque[OutboxEntry | UnstoredMessage] = deque()
        self._unlistened: dict[int, Unlistened] = {}
        self._retry_at_s = 0.0
        self._asked: dict[str, bool] = {}
        """Inbox of an exit in flight: whether the server has answered that it has no listener."""
        self._in_flight: list[OutboxEntry] = []
        self._waits: dict[int, Callable[[], None]] = {}
        """Number of an event: what to call when the server has it."""
        self._wake = asyncio.Event()
        self.writer = OutboxWriter(outbox, ahead or NothingAhead(), log, on_progress=self._wake.set)
        self._settled = asyncio.Event()

    # -- published ---------------------------------------------------------------------------------------------

    def publish_event(
        self,
        kept: Kept,
        passed: Callable[[], None] | None = None,
        *,
        on_kept: Callable[[], None] | None = None,
    ) -> int:
        """The event's number. ``passed``: called when the barrier behind it has passed, by this agent or never. ``on_kept``:
        called when the outbox has it on disk, or when it has left without that."""
        entry = self._outbox.add(kept)
        if passed is not None:
            self._waits[entry.number] = passed
        self.writer.add(entry, on_kept)
        if len(self._outbox) > LIMIT:  # a bus that is away for days: the oldest are of no use to anybody
            oldest = next(iter(self._outbox))
            self._log.error("outbox_full_oldest_dropped", subject=oldest.kept.subject, limit=LIMIT)
            self._drop(oldest.number)
        self._put(entry)
        return entry.number

    def repeat(self, ones: Iterable[OutboxEntry | UnstoredMessage]) -> None:
        """Publish again what the server has already, unless it is queued. No barrier follows an unstored message: a
        thousand of them must not hold up the registers behind them."""
        numbers = {one.number for one in self._queue if isinstance(one, OutboxEntry)}
        payloads = {one.payload for one in self._queue if isinstance(one, UnstoredMessage)}
        for one in ones:
            is_queued = one.number in numbers if isinstance(one, OutboxEntry) else one.payload in payloads
            if not is_queued and self._connection is not None:
                self._put(one)

    def publish(self, message: UnstoredMessage) -> None:
        self._put(replace(message, generation=self.writer.request_memory()))

    def _put(self, one: OutboxEntry | UnstoredMessage) -> None:
        self._settled.clear()
        if (
            self._connection is not None
        ):  # without one, an event waits in the outbox and an unstored message is dropped
            self._queue.append(one)
            self._wake.set()

    @property
    def unsent(self) -> int:
        """How many events wait to be sent, or for their barrier or listener."""
        return len(self._outbox)

    @property
    def waiting(self) -> frozenset[bytes]:
        """Their payloads."""
        return frozenset(entry.kept.payload for entry in self._outbox)

    @property
    def unlistened(self) -> int:
        """How many exits the server has and had no listener for, so far."""
        return len(self._unlistened)

    async def wait_settled(self) -> None:
        """Until every event is settled and the queue is empty."""
        while self._outbox or self._queue:
            self._settled.clear()
            await self._settled.wait()

    # -- the connection's life ---------------------------------------------------------------------------------

    def connected(self, connection: Connection, inbox_prefix: str) -> None:
        """All kept events go first, in their order."""
        self._connection, self._inbox_prefix = connection, inbox_prefix
        self._queue = deque(self._outbox)
        self._wake.set()

    def disconnected(self) -> None:
        self._connection = None
        self._queue.clear()
        self._unlistened.clear()
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
        if not self._unlistened or self._connection is None:
            return None
        return max(0.0, self._retry_at_s - time.monotonic())

    def _take_batch(self) -> list[OutboxEntry | UnstoredMessage]:
        """Exits without a listener are older than what is queued: they go first when their time has come, or when
        another exit leaves."""
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
            self._drop(doubted)  # the request is answered, whether or not the first reply arrived
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
