"""A simple bus client for the controller and the gateway of `garrison up`, and for tests.

The agent itself uses `Bus`, which preserves wire order and has an outbox; a development peer needs neither. This client
reconnects by itself, with a new nats-py client for each connection (docs/bus.md, "One client a connection"). An exception
in a handler is logged and does not end the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from agent.bus.wire import honour_cancellation

Handler = Callable[[str, str, bytes], None]
"""Called with subject, reply inbox (or ""), and payload."""

CONNECT_TIMEOUT_S = 3.0
RETRY_S = 0.25
PROBE_INTERVAL_S = 3.0


class NotConnected(ConnectionError):
    """There is no connection to the bus at present. Retry after `PeerClient.wait_connected`."""


class PeerClient:
    def __init__(
        self, servers: tuple[str, ...], *, name: str, on_connected: Callable[[], None], log: Any
    ) -> None:
        self._servers = servers
        self._name = name
        self._on_connected = on_connected
        self._log = log
        self._handlers: list[tuple[str, Handler]] = []
        self._client: NatsClient | None = None
        self._up = asyncio.Event()

    def subscribe(self, subject: str, handler: Handler) -> None:
        """Call before `run`, which subscribes again after each connect."""
        self._handlers.append((subject, handler))

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    async def wait_connected(self) -> None:
        await self._up.wait()

    async def run(self) -> None:
        """Connects, and reconnects after each loss, until it is cancelled."""
        while True:
            for server in self._servers:
                with contextlib.suppress(OSError, nats.errors.Error, TimeoutError):
                    await self._one_connection(server)
            await asyncio.sleep(RETRY_S)

    async def _one_connection(self, server: str) -> None:
        lost = asyncio.Event()

        async def on_lost() -> None:
            lost.set()

        async def on_error(error: Exception) -> None:
            self._log.warning("peer_bus_error", error=repr(error))

        client = NatsClient()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await client.connect(
                    server,
                    name=self._name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    connect_timeout=2,
                    flush_timeout=1,
                    disconnected_cb=on_lost,
                    closed_cb=on_lost,
                    error_cb=on_error,
                )
                for subject, handler in self._handlers:
                    await client.subscribe(subject, cb=self._guarded(handler))
                await client.flush(timeout=1)
            self._client = client
            self._up.set()
            self._on_connected()
            while not lost.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_INTERVAL_S):
                        await lost.wait()
                if not lost.is_set():
                    await client.rtt(2)
        finally:
            self._client = None
            self._up.clear()
            with contextlib.suppress(Exception):  # the connection may be broken already
                await asyncio.wait_for(client.close(), 0.5)

    def _guarded(self, handler: Handler) -> Callable[[Msg], Any]:
        async def receive(msg: Msg) -> None:
            try:
                handler(msg.subject, msg.reply, msg.data)
            except Exception:  # outermost frame of a message
                self._log.exception("peer_message_failed", subject=msg.subject)

        return receive

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Raises NotConnected. Success does not prove that the server has the message."""
        if self._client is None:
            raise NotConnected("no connection to the bus")
        try:
            await self._client.publish(subject, payload, reply=reply)
        except (nats.errors.Error, OSError) as error:
            raise NotConnected(str(error)) from error
        honour_cancellation()

    @contextlib.asynccontextmanager
    async def request_many(self, subject: str, payload: bytes) -> AsyncIterator[asyncio.Queue[bytes]]:
        """Publishes a request and collects its replies in the queue until the block ends.

        If nobody subscribes to the subject, the queue receives b"" (the server's 503). Raises NotConnected.
        """
        client = self._client
        if client is None:
            raise NotConnected("no connection to the bus")
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        inbox = client.new_inbox()

        async def receive(msg: Msg) -> None:
            queue.put_nowait(msg.data)

        subscription = await client.subscribe(inbox, cb=receive)
        try:
            await client.publish(subject, payload, reply=inbox)
            honour_cancellation()
            yield queue
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
