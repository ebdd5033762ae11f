"""The bus as the other rooms see it: commands come in wire order, words go out by what they are worth.

    tell    events: kept on disk until the server has them, in order; an exit until somebody listens
    say     state and voice: sent now or not at all; after each connect the worker says everything anew
    answer  replies to a question: dropped when late

One client per connection; the endless loop over the servers is here (bus.md 3).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from agent.bus import messages as m
from agent.bus.outbox import Entry, Kept, Outbox
from agent.bus.subjects import GREET, OUTBOUND, Inbound, inbound
from agent.bus.wire import BusError, Connection
from agent.config import NatsSettings

LIVENESS_S = 3.0
QUICK_RETRIES_S = 30.0
LISTENER_RETRY_S = 0.2
LISTENER_PATIENCE_S = 60.0
UNREGISTER_KEPT_S = 120.0


Log = structlog.typing.FilteringBoundLogger


class Bus:
    def __init__(
        self,
        settings: NatsSettings,
        *,
        agent_id: str,
        outbox_dir: Path,
        apply: Callable[[m.Command], None],
        on_connected: Callable[[], None],
        staging: bool,
        log: Log,
    ) -> None:
        self._settings = settings
        self._name = f"garrison-{agent_id}"
        self._inbound = {one.subject: one for one in inbound(agent_id) if staging or not one.staging}
        self._apply = apply
        self._on_connected = on_connected
        self._log = log
        self._outbox = Outbox(outbox_dir)
        self._connection: Connection | None = None
        self._arrived: deque[tuple[str, str, bytes]] = deque()
        self._wake_dispatcher = asyncio.Event()
        self._wake_sender = asyncio.Event()
        self._outbox_changed = asyncio.Event()
        self._voice: deque[tuple[str, bytes]] = deque()
        self._ready = asyncio.Event()
        self._ignoring = False
        self._greet_inbox = ""
        self._inbox_prefix = ""
        self._listener_replies: dict[str, asyncio.Future[bool]] = {}
        self._aside: dict[int, asyncio.Task[None]] = {}
        self._unregistered: dict[tuple[str, int], tuple[float, m.RouterUnregister]] = {}
        for damaged in self._outbox.damaged:
            log.warning("outbox_entry_damaged", entry=damaged)

    # -- for the other rooms -----------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._ready.is_set()

    async def wait_connected(self) -> None:
        await self._ready.wait()

    def tell(self, event: m.Event, *, reply_to: str = "") -> None:
        """``reply_to``: the inbox of a staging request."""
        if isinstance(event, m.RouterUnregister):
            self._unregistered[event.host, event.port] = (time.monotonic(), event)
        subject = OUTBOUND.get(type(event), reply_to)
        if not subject:
            return  # a request without an inbox wants no answer
        self._outbox.put(Kept(subject, m.encode(event), isinstance(event, m.DropletExited)))
        self._wake_sender.set()

    def say(self, word: m.Word) -> None:
        if isinstance(word, m.RouterRegister):
            self._unregistered.pop((word.host, word.port), None)  # a new owner
        self._publish(OUTBOUND[type(word)], m.encode(word))

    def answer(self, reply_to: str, reply: m.FindReply) -> None:
        self._publish(reply_to, m.encode(reply))

    def repeat_unregisters(self) -> None:
        """A router that was away has not heard them; said before the registers (bus.md 4)."""
        now = time.monotonic()
        self._unregistered = {
            key: kept for key, kept in self._unregistered.items() if now - kept[0] < UNREGISTER_KEPT_S
        }
        for _, event in self._unregistered.values():
            self._publish(OUTBOUND[m.RouterUnregister], m.encode(event))

    def ignore_commands(self) -> None:
        self._ignoring = True

    async def farewell(self, timeout_s: float = 3.0) -> None:
        """Until the outbox is empty, or the time is over; then the connection ends. What is left stays on disk."""
        deadline = time.monotonic() + timeout_s
        while len(self._outbox) and (left_s := deadline - time.monotonic()) > 0:
            self._wake_sender.set()
            self._outbox_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, 0.1)):
                    await self._outbox_changed.wait()
        for task in self._aside.values():
            task.cancel()
        if self._connection is not None:
            await self._connection.close()

    # -- inside ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For a TaskGroup: for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._dispatch(), name="bus-dispatch")
            group.create_task(self._connect_for_ever(), name="bus-connect")
            group.create_task(self._send_events(), name="bus-events")

    async def _connect_for_ever(self) -> None:
        since = time.monotonic()
        servers = list(self._settings.servers)
        random.shuffle(servers)
        while True:
            for server in servers:
                try:
                    connection = await Connection.open(
                        self._settings, server, self._name, self._hand_over, self._alarm
                    )
                except BusError as e:
                    self._log.warning("bus_unreachable", server=_without_secrets(server), error=str(e))
                    continue
                await self._live(connection)
                since = time.monotonic()
            quick = time.monotonic() - since < QUICK_RETRIES_S
            await asyncio.sleep(random.uniform(0.1, 0.4) if quick else random.uniform(0.5, 2.0))

    async def _live(self, connection: Connection) -> None:
        try:
            self._inbox_prefix = connection.new_inbox()
            self._greet_inbox = f"{self._inbox_prefix}.greet"
            for subject in self._inbound:
                await connection.subscribe(subject, self._not_handed_over)
            await connection.subscribe(f"{self._inbox_prefix}.>", self._not_handed_over)
            await connection.barrier()
            self._connection = connection
            self._ready.set()
            self._log.info("bus_connected", server=connection.server)
            await connection.publish(GREET, b"{}", reply=self._greet_inbox)
            self.repeat_unregisters()
            self._on_connected()
            self._wake_sender.set()
            while not connection.ended.is_set():
                try:
                    async with asyncio.timeout(LIVENESS_S):
                        await connection.ended.wait()
                except TimeoutError:
                    await connection.barrier()
        except BusError as e:
            self._log.warning("bus_broken", error=str(e))
        finally:
            self._connection = None
            self._ready.clear()
            await connection.close()
        self._log.warning("bus_disconnected")

    def _hand_over(self, subject: str, reply: str, payload: bytes) -> None:
        self._arrived.append((subject, reply, payload))
        self._wake_dispatcher.set()

    def _alarm(self, error: str) -> None:
        self._log.warning("bus_error", error=error)

    def _not_handed_over(self, subject: str) -> None:
        """A future nats-py that makes its messages another way would end here; nothing may be lost silently."""
        self._log.error("bus_message_not_handed_over", subject=subject)

    async def _dispatch(self) -> None:
        while True:
            while self._arrived:
                self._take(*self._arrived.popleft())
            self._wake_dispatcher.clear()
            await self._wake_dispatcher.wait()

    def _take(self, subject: str, reply: str, payload: bytes) -> None:
        if self._inbox_prefix and subject.startswith(self._inbox_prefix):
            self._take_reply(subject, payload)
            return
        found = self._inbound.get(subject)
        if found is not None and not self._ignoring:
            self._carry_out(found, reply, payload)

    def _take_reply(self, subject: str, payload: bytes) -> None:
        if subject == self._greet_inbox:
            if payload:  # nobody listens: an empty 503
                self._carry_out(self._inbound["router.start"], "", payload)
            return
        waiting = self._listener_replies.get(subject)
        if waiting is not None and not waiting.done():
            waiting.set_result(False)  # the server's 503: nobody listens

    def _carry_out(self, what: Inbound, reply: str, payload: bytes) -> None:
        try:
            command = what.make(payload, reply)
        except m.MessageError as e:
            self._log.warning("bus_message_refused", subject=what.subject, error=str(e))
            return
        try:
            self._apply(command)
        except Exception:  # the outermost frame of a message: it costs itself only
            self._log.exception("bus_command_failed", subject=what.subject)

    def _publish(self, subject: str, payload: bytes) -> None:
        """Sent now or not at all. The write itself is a task's: nats-py's publish is a coroutine."""
        if self._connection is None:
            return
        self._voice.append((subject, payload))
        self._wake_sender.set()

    async def _send_events(self) -> None:
        """One sender, so that words and events leave in the order in which they were said."""
        while True:
            await self._wake_sender.wait()
            self._wake_sender.clear()
            connection = self._connection
            if connection is None:
                self._voice.clear()
                continue
            try:
                await self._send(connection)
            except BusError as e:
                self._log.warning("bus_send_failed", error=str(e))
                await connection.close()

    async def _send(self, connection: Connection) -> None:
        sent: list[Entry] = []
        for entry in self._outbox:
            if entry.number in self._aside:
                continue
            if entry.kept.listener:
                self._aside[entry.number] = asyncio.create_task(
                    self._until_heard(entry), name=f"bus-exit-{entry.number}"
                )
                await asyncio.sleep(0)  # its first try leaves before what follows it
            else:
                await connection.publish(entry.kept.subject, entry.kept.payload)
                sent.append(entry)
        while self._voice:
            await connection.publish(*self._voice.popleft())
        if sent:
            await connection.barrier()
            for entry in sent:
                self._outbox.remove(entry.number)
            self._outbox_changed.set()

    async def _until_heard(self, entry: Entry) -> None:
        """An exit: again every 0.2 s while nobody listens, for a minute at most (bus.md 4)."""
        deadline = time.monotonic() + LISTENER_PATIENCE_S
        try:
            while True:
                connection = self._connection
                if connection is not None and await self._try_listener(connection, entry):
                    break
                if time.monotonic() > deadline and connection is not None:
                    self._log.warning("bus_event_without_listener", subject=entry.kept.subject)
                    break
                await asyncio.sleep(LISTENER_RETRY_S)
            self._outbox.remove(entry.number)
            self._outbox_changed.set()
        finally:
            self._aside.pop(entry.number, None)

    async def _try_listener(self, connection: Connection, entry: Entry) -> bool:
        inbox = f"{self._inbox_prefix}.exit.{entry.number}.{time.monotonic_ns()}"
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._listener_replies[inbox] = answered
        try:
            await connection.publish(entry.kept.subject, entry.kept.payload, reply=inbox)
            await connection.barrier()  # without a listener the 503 comes before the PONG
            for _ in range(3):  # what came before the PONG may still wait its turn at the dispatcher
                await asyncio.sleep(0)
            return not answered.done()
        except BusError:
            return False
        finally:
            del self._listener_replies[inbox]


def _without_secrets(server: str) -> str:
    scheme, separator, rest = server.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
