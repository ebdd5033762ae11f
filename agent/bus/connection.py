"""The bus as the rest of the agent uses it: commands come in wire order, messages leave with a delivery guarantee.

    publish_event  an event: in order, and on disk until the server has it (an exit: until a subscriber had it)
    publish        state and periodic messages: sent now or dropped; the worker publishes them again after each connect
    answer         the reply to a find: sent now or dropped

This module connects, reconnects for ever (docs/bus.md, "One client a connection") and dispatches received messages; `Sender`
sends (docs/bus.md, "Delivery guarantees").

Invariant: a command is applied before the next one is decoded, without an await in between. So a stop that the server sent
after a start always finds the instance. The single task `_dispatch` ensures this.

Round trips check whether the connection is alive, since nothing else shows it: a client that looks connected may have stopped
reading, and a stalled server keeps its socket open.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agent.bus import commands as c
from agent.bus import credentials
from agent.bus import messages as m
from agent.bus.heartbeats import HeartbeatParts
from agent.bus.outbox import Kept, Outbox, OutboxEntry
from agent.bus.outbox_writer import WriteAhead
from agent.bus.routes import routes_of
from agent.bus.sender import LISTENER_PATIENCE_S, Sender, UnstoredMessage
from agent.bus.subjects import GREET, OUTBOUND, inbound
from agent.bus.unregistered import REST_S, Unregistered
from agent.bus.wire import Arrived, BusError, Connection
from agent.config import NatsSettings
from agent.logs import Log

LIVENESS_S = 3.0
QUICK_RETRIES_S = 30.0
STILL_AWAY_S = 60.0
SMALL_BYTES = 4096  # every server accepts messages of this size
SLICE_S = 0.01


class Bus:
    """``ahead``: the memory, whose records must be on disk before a message that depends on them is sent."""

    def __init__(
        self,
        settings: NatsSettings,
        *,
        agent_id: str,
        outbox_dir: Path,
        staging: bool,
        log: Log,
        ahead: WriteAhead | None = None,
        listener_patience_s: float = LISTENER_PATIENCE_S,
        port_rest_s: float = REST_S,
    ) -> None:
        self._settings = settings
        self._name = f"garrison-{agent_id}"
        self._inbound = {one.subject: one for one in inbound(agent_id) if staging or not one.staging}
        self._log = log
        self._outbox = Outbox(outbox_dir)
        for damaged in self._outbox.damaged:
            log.warning("outbox_entry_damaged", entry=damaged)
        self._sender = Sender(
            self._outbox,
            log,
            on_passed=self._note_passed,
            ahead=ahead,
            listener_patience_s=listener_patience_s,
        )
        self._heartbeats = HeartbeatParts()
        self._unregistered = Unregistered(port_rest_s)
        self._remember_unregisters()
        self._connection: Connection | None = None
        self._connected, self._away = asyncio.Event(), asyncio.Event()
        """Neither is set until the first attempt to connect has ended."""
        self._arrived: deque[Arrived] = deque()
        self._wake_dispatcher = asyncio.Event()
        self._greet_inbox = ""
        self._ignoring = False
        self._leaving = False
        self._lost_at_s = time.monotonic()
        self._unreachable: dict[str, tuple[str, float]] = {}
        """By server: the error last logged, and when (monotonic seconds)."""

    # -- for the rest of the agent -----------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        await self._connected.wait()

    @property
    def unsent(self) -> int:
        """The number of events that still wait to be sent, or for their barrier or listener."""
        return self._sender.unsent

    def publish_event(
        self,
        event: m.EventMessage,
        *,
        reply_to: str = "",
        passed: Callable[[], None] | None = None,
        on_kept: Callable[[], None] | None = None,
    ) -> None:
        """Queues an event. ``reply_to``: the inbox of a staging request; other events have fixed subjects. ``passed``: called
        once the server has the event. ``on_kept``: called once the memory may forget it (see `Sender.publish_event`)."""
        subject = OUTBOUND.get(type(event), reply_to)
        if not subject:  # a request without an inbox expects no reply
            if on_kept is not None:
                on_kept()
            return
        payload = m.encode(event)
        kept = Kept(
            subject,
            payload,
            listener=isinstance(event, m.DropletExited),
            once=isinstance(event, m.StagingReply1),
            instead=_instead(event, len(payload)),
        )
        number = self._sender.publish_event(kept, passed, on_kept=on_kept)
        if isinstance(event, m.RouterUnregister):
            self._unregistered.add(number, event)

    def is_kept(self, event: m.EventMessage) -> bool:
        """True while the outbox has an identical event that is still to be sent."""
        return m.encode(event) in self._sender.waiting

    def publish(self, message: m.StateMessage) -> None:
        """Sends a state or periodic message, or drops it without a connection. A large heartbeat is split."""
        if isinstance(message, m.RouterRegister):
            for number in self._unregistered.registered(message):
                if number in self._outbox.repeats:
                    self._forget(number)
        parts: tuple[m.StateMessage, ...] = (message,)
        if isinstance(message, m.Heartbeat) and self._connection is not None:
            parts = self._heartbeats.split(message, self._connection.max_payload_bytes)
        for part in parts:
            self._sender.publish(UnstoredMessage(OUTBOUND[type(part)], m.encode(part)))

    async def wait_passed(self, passed: asyncio.Event, timeout_s: float) -> None:
        """Waits until ``passed`` is set, for at most ``timeout_s``. Returns at once when the bus is known to be away."""
        waits = {asyncio.ensure_future(one.wait()) for one in (passed, self._away)}
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def answer(self, reply_to: str, reply: m.FindReply) -> None:
        self._sender.publish(UnstoredMessage(reply_to, m.encode(reply)))

    # -- unregistered routes -----------------------------------------------------------------------------------

    def repeat_unregisters(self) -> None:
        """Sends the kept unregisters again for routers that were away. Call before publishing registers."""
        self._sender.repeat(self._unregisters_again())

    def _unregisters_again(self) -> Iterator[OutboxEntry | UnstoredMessage]:
        """An unregister whose port still rests is sent as an event: the rest is counted from the barrier after it."""
        subject = OUTBOUND[m.RouterUnregister]
        for number, event in self._unregistered.repeat():
            if number in self._outbox.rested:
                yield UnstoredMessage(subject, m.encode(event))
            elif number in self._outbox.repeats:
                yield OutboxEntry(number, Kept(subject, m.encode(event)))

    def set_prune_threshold(self, prune_s: float | None) -> None:
        """``prune_s``: the time without a register after which a router drops a route; None: the router did not report it."""
        self._unregistered.set_prune_threshold(prune_s)

    def port_rests(self, port: int) -> bool:
        """True while a router may still have a route to this host port, so that no other app may get it."""
        return self._unregistered.rests(port, time.monotonic())

    def _remember_unregisters(self) -> None:
        """Load the unregisters of former agents. The time of their barrier is not known, so their ports rest for the full time
        again. Routes are normalised, since older agents stored them as they were received."""
        now_s = time.monotonic()
        for entry in (*self._outbox, *self._outbox.repeats.values()):
            if entry.kept.repeats:
                try:
                    event = m.decode(m.RouterUnregister, entry.kept.payload)
                except m.MessageError as e:
                    self._log.error("unregister_damaged", number=entry.number, error=str(e))
                    continue
                event = msgspec.structs.replace(event, uris=routes_of(event.uris))
                rested_at_s = now_s if entry.number in self._outbox.rested else None
                self._unregistered.add(entry.number, event, rested_at_s=rested_at_s)

    def _note_passed(self, number: int) -> bool:
        return self._unregistered.passed(number, time.monotonic())

    def _sweep_unregisters(self) -> None:
        outbox = self._outbox
        # an unregister that the outbox dropped or set aside never passes a barrier: its port must not wait for one
        self._unregistered.retain(lambda number: number in outbox or number in outbox.repeats)
        swept = self._unregistered.sweep(time.monotonic())
        for number in swept.over:
            self._forget(number)
        for number in swept.rested:
            try:
                self._outbox.rest(number)
            except OSError as e:
                self._log.error("outbox_not_renamed", error=str(e), consequence="its port rests once more")

    def _forget(self, number: int) -> None:
        try:
            self._outbox.remove(number)
        except OSError as e:
            self._log.error("outbox_not_removed", error=str(e), consequence="sent again by the next agent")

    def ignore_commands(self) -> None:
        """From now on commands are ignored, except that stagings are refused with a reply."""
        self._ignoring = True

    async def farewell(self, timeout_s: float = 3.0) -> None:
        """Waits until every event is settled, for at most ``timeout_s``, then closes the connection for good. The outbox keeps
        the other events for the next agent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._sender.wait_settled()
        self._leaving = True
        if (connection := self._connection) is not None:
            with contextlib.suppress(BusError):
                await connection.barrier(0.5)  # closing discards bytes that the server has not received yet
            await connection.close()

    # -- the connection ----------------------------------------------------------------------------------------

    async def run(self, apply: Callable[[c.Command], None], on_connected: Callable[[], None]) -> None:
        """Runs until it is cancelled.

        ``apply`` carries out a command and does not wait. ``on_connected`` is called after each connect and publishes the present
        state.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._dispatch(apply), name="bus-dispatch")
            group.create_task(self._connect_for_ever(on_connected), name="bus-connect")
            group.create_task(self._sender.writer.run(), name="bus-write")
            group.create_task(self._sender.run(), name="bus-send")
            group.create_task(self._sender.writer.sync(), name="bus-sync")

    async def _connect_for_ever(self, on_connected: Callable[[], None]) -> None:
        servers = random.sample(self._settings.servers, k=len(self._settings.servers))
        while not self._leaving:
            for server in servers:
                if self._leaving:
                    return
                try:
                    connection = await Connection.open(
                        self._settings, server, self._name, self._hand_over, self._alarm
                    )
                except BusError as e:
                    self._note_unreachable(credentials.address(server).url, str(e))
                else:
                    await self._live(connection, on_connected)
            self._away.set()
            is_quick = time.monotonic() - self._lost_at_s < QUICK_RETRIES_S
            await asyncio.sleep(random.uniform(0.1, 0.4) if is_quick else random.uniform(0.5, 2.0))

    async def _live(self, connection: Connection, on_connected: Callable[[], None]) -> None:
        prefix = connection.new_inbox()
        self._greet_inbox = f"{prefix}.greet"
        try:
            for subject in (*self._inbound, f"{prefix}.>"):
                await connection.subscribe(subject, self._not_handed_over)
            await connection.barrier()
            self._begin(connection, prefix, on_connected)
            await self._watch(connection)
        except BusError as e:
            self._log.warning("bus_broken", server=connection.server, error=str(e))
        finally:
            self._end()
            await connection.close()

    def _begin(self, connection: Connection, inbox_prefix: str, on_connected: Callable[[], None]) -> None:
        """Publishes, in this order: kept events, unregisters, the present state, and a greeting that routers reply to."""
        self._connection = connection
        self._unreachable.clear()
        self._connected.set()
        self._away.clear()
        self._log.info("bus_connected", server=connection.server)
        self._sender.connected(connection, inbox_prefix)
        self.repeat_unregisters()
        on_connected()
        self._sender.publish(UnstoredMessage(GREET, b"{}", self._greet_inbox))

    async def _watch(self, connection: Connection) -> None:
        """Returns when the connection has ended. Raises BusError if a round trip fails."""
        while not connection.ended.is_set():
            try:
                async with asyncio.timeout(LIVENESS_S):
                    await connection.ended.wait()
            except TimeoutError:
                await connection.barrier()
                self._sweep_unregisters()

    def _end(self) -> None:
        self._sender.disconnected()
        self._connection = None
        if self._connected.is_set():
            self._connected.clear()
            self._away.set()
            self._lost_at_s = time.monotonic()
            self._log.warning("bus_disconnected")

    def _note_unreachable(self, server: str, why: str) -> None:
        """Logs a new error at once and a repeated one each minute: attempts may fail several times a second for days."""
        now_s = time.monotonic()
        last_why, last_s = self._unreachable.get(server, ("", 0.0))
        if why != last_why or now_s - last_s > STILL_AWAY_S:
            self._unreachable[server] = (why, now_s)
            self._log.warning("bus_unreachable", server=server, error=why, consequence="retrying")

    # -- receiving ---------------------------------------------------------------------------------------------

    def _hand_over(self, arrived: Arrived) -> None:
        if arrived.nobody:
            self._sender.note_nobody(arrived.subject)
            return
        self._arrived.append(arrived)
        self._wake_dispatcher.set()

    def _alarm(self, error: str) -> None:
        self._log.warning("bus_error", error=error)

    def _not_handed_over(self, subject: str) -> None:
        """Called if nats-py delivers a message that `Client.msg_class` did not see, as a future version might: a lost message
        must be logged."""
        self._log.error("bus_message_lost", subject=subject)

    async def _dispatch(self, apply: Callable[[c.Command], None]) -> None:
        """Applies commands in wire order. A burst is processed in slices of SLICE_S, so that other tasks run in between."""
        while True:
            slice_ends_s = time.monotonic() + SLICE_S
            while self._arrived:
                self._take(self._arrived.popleft(), apply)
                if time.monotonic() > slice_ends_s:
                    await asyncio.sleep(0)
                    slice_ends_s = time.monotonic() + SLICE_S
            self._wake_dispatcher.clear()
            await self._wake_dispatcher.wait()

    def _take(self, arrived: Arrived, apply: Callable[[c.Command], None]) -> None:
        what = self._inbound.get("router.start" if arrived.subject == self._greet_inbox else arrived.subject)
        if what is None or (self._ignoring and not what.staging):
            return
        try:
            command = what.make(arrived.payload, arrived.reply)
            apply(c.when_leaving(command) if self._ignoring else command)
        except m.MessageError as e:
            self._log.warning("bus_message_refused", subject=what.subject, error=str(e))
        except Exception:  # outermost frame of a message: an error in one must not stop the dispatcher
            self._log.exception("bus_command_failed", subject=what.subject)


def _instead(event: m.EventMessage, size_bytes: int) -> bytes:
    """The payload to send if the server does not accept one as large as the event; empty: none.

    Only staging replies have one: without any reply the controller would wait for 15 minutes.
    """
    if size_bytes < SMALL_BYTES or not isinstance(
        event, m.StagingReply1 | m.StagingReply2 | m.StagingRefused
    ):
        return b""
    error = f"Error staging: the reply has {size_bytes} bytes, more than the bus accepts"
    return m.encode(m.StagingRefused(event.task_id, error))
