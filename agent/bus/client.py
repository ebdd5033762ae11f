"""A plain bus client for the peers that `garrison up` plays (controller, gateway) and for tests.

The agent itself speaks through `Bus`, which keeps wire order and an outbox; a development peer needs neither.
This wrapper keeps nats-py behind agent.bus, comes back by itself after the server was away (one client per
connection, see docs/bus.md, "Order of what comes in"), and hands each message to a plain function that cannot break the connection.
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
"""subject, reply inbox (or ""), payload"""

CONNECT_TIMEOUT_S = 3.0
RETRY_S = 0.25
PROBE_INTERVAL_S = 3.0


class NotConnected(ConnectionError):
    """The bus is not reachable now."""


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
        """Before `run`: subscribed anew at every connection."""
        self._handlers.append((subject, handler))

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    async def wait_connected(self) -> None:
        await self._up.wait()

    async def run(self) -> None:
        """Connects, and again after each loss, until cancelled."""
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
            with contextlib.suppress(Exception):  # closing what may be broken already
                await asyncio.wait_for(client.close(), 0.5)

    def _guarded(self, handler: Handler) -> Callable[[Msg], Any]:
        async def receive(msg: Msg) -> None:
            try:
                handler(msg.subject, msg.reply, msg.data)
            except Exception:  # outermost frame of a message
                self._log.exception("peer_message_failed", subject=msg.subject)

        return receive

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        if self._client is None:
            raise NotConnected
        try:
            await self._client.publish(subject, payload, reply=reply)
        except (nats.errors.Error, OSError) as error:
            raise NotConnected(str(error)) from error
        honour_cancellation()

    @contextlib.asynccontextmanager
    async def request_many(self, subject: str, payload: bytes) -> AsyncIterator[asyncio.Queue[bytes]]:
        """Publishes with a reply inbox; every answer lands in the queue while the block runs. Without a
        listener the server's 503 lands there, as b""."""
        client = self._client
        if client is None:
            raise NotConnected
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
