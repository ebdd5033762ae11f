"""One connection of nats-py. A new one is made for each attempt; nats-py's own reconnects are switched off.

Messages are received in wire order because nats-py's parser constructs `Client.msg_class` once for each message, before it queues
the message for a subscription. The class used here passes the message on in its constructor. It never raises, because an exception
would end the client's reading (docs/bus.md, "Order of what comes in").

A connection that failed once is never used again. Two private parts of nats-py are used, and a test guards each. `_process_msg` is
wrapped, so that an invalid header or subject loses only its own message. The transport is replaced for two reasons: to read why
a server refused the connection, and to close a connection at once. nats-py's `close()` waits until a stalled server has received
the pending bytes, and leaks the socket and tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

from agent.bus import credentials
from agent.config import NatsSettings

CONNECT_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 0.5
#: No reconnects by nats-py; and bounds, without which a stalled server blocks for ever (docs/bus.md, "One client a connection").
SWITCHED_OFF: dict[str, Any] = {
    "allow_reconnect": False,
    "max_reconnect_attempts": 1,
    "reconnect_time_wait": 0.001,
    "connect_timeout": 2,
    "flush_timeout": 1,
    "pending_size": 64 << 20,
}
SUBJECT_BYTES = 3900  # a server closes the connection at a control line of more than 4,096 bytes


class Arrived(NamedTuple):
    """A received message. ``nobody``: it is the server's 503, which says that a message with this reply inbox had no subscriber."""

    subject: str
    reply: str
    payload: bytes
    nobody: bool


HandOver = Callable[[Arrived], None]


class BusError(RuntimeError):
    """The connection failed. The message can be sent over a new one."""


class Unsendable(ValueError):
    """The message is too large or its subject is invalid, so no connection can send it. The connection stays usable."""


def _client_class(hand_over: HandOver, alarm: Callable[[str], None]) -> type[Client]:
    class HandedOver(Msg):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            with contextlib.suppress(
                Exception
            ):  # the subscription's callback reports a message that was not passed on
                nobody = self.headers is not None and self.headers.get("Status") == "503"
                hand_over(Arrived(self.subject, self.reply, self.data, nobody))
                self.handed_over = True

    class OneConnection(Client):
        msg_class = HandedOver

        async def _process_msg(self, *args: Any, **kwargs: Any) -> None:
            try:
                await super()._process_msg(*args, **kwargs)
            except Exception as e:  # a subject or header that is not UTF-8 would end the read loop
                alarm(f"received message dropped: {_said(e)}")

    return OneConnection


class _Transport(TcpTransport):
    """Sends CONNECT and the PING after it in one write, and can read what a server sent before it closed.

    A server that refuses a client sends the reason and closes. With two writes the second one would fail on the closed socket, and
    asyncio would then discard the unread reason. For the same reason a second descriptor keeps the socket open until the
    connection is established.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held = b""
        self._kept: socket.socket | None = None

    def __bool__(self) -> bool:
        return True  # nats-py replaces a transport that is false, as the base class is before it is connected

    async def connect(self, *args: Any, **kwargs: Any) -> None:
        await super().connect(*args, **kwargs)
        assert self._bare_io_writer is not None
        self._kept = self._bare_io_writer.get_extra_info("socket").dup()

    def write(self, payload: bytes) -> None:
        if payload.startswith(b"CONNECT ") and not self._held:
            self._held = payload
            return
        whole, self._held = self._held + payload, b""
        super().write(whole)  # type: ignore[no-untyped-call]

    def left_behind(self) -> bytes:
        """Unread bytes: those in asyncio's buffer (also with TLS), then those in the kernel's (without TLS only)."""
        left = bytes(getattr(self._io_reader, "_buffer", b""))
        if self._io_reader is not self._bare_io_reader:
            return left
        with contextlib.suppress(OSError):  # there is no more, or the connection was reset
            while self._kept is not None and (more := self._kept.recv(4096, socket.MSG_DONTWAIT)):
                left += more
        return left

    def let_go(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def _refusal(left: bytes) -> str:
    """The reason why a server closed the connection, formatted as by nats-py; empty: the server sent none."""
    found = re.search(rb"^-ERR ([^\r\n]{1,200})\r\n", left, re.MULTILINE)
    return f"nats: {found[1].decode(errors='replace')}" if found else ""


class Connection:
    """One connection to one server. Usable until ``ended`` is set.

    ``hand_over`` is called with each received message, in wire order. ``alarm`` is called with the text of an error that does not
    end the connection.
    """

    def __init__(self, server: str, hand_over: HandOver, alarm: Callable[[str], None]) -> None:
        self.server = server
        self.ended = asyncio.Event()
        self._alarm = alarm
        self._client = _client_class(hand_over, alarm)()
        self._transport = _Transport()
        if not server.startswith("ws"):
            self._client._transport = self._transport
        self._is_open = False
        self._why_not = ""

    @classmethod
    async def open(
        cls, settings: NatsSettings, server: str, name: str, hand_over: HandOver, alarm: Callable[[str], None]
    ) -> Connection:
        """Connects to one server within CONNECT_TIMEOUT_S. Raises BusError with the server's reason if it gave one."""
        address = credentials.address(server)
        self = cls(address.url, hand_over, alarm)
        try:
            options = credentials.options(settings, address)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._client.connect(
                    **options,
                    **SWITCHED_OFF,
                    name=name,
                    error_cb=self._note_error,
                    disconnected_cb=self._note_end,
                    closed_cb=self._note_end,
                )
        except Exception as e:  # nats-py raises a dozen kinds; each means that this server cannot be used now
            refusal = _refusal(self._transport.left_behind()) if isinstance(e, OSError) else ""
            await self.close()
            honour_cancellation()  # connect swallows it too when the server is gone
            raise BusError(refusal or self._why_not or _said(e)) from e
        except BaseException:
            await self.close()
            raise
        finally:
            self._transport.let_go()
        self._is_open = True
        return self

    async def _note_error(self, error: Exception) -> None:
        if not self._is_open:
            # only the first error: those after it ("no servers available", a reset) hide the cause
            self._why_not = self._why_not or _said(error)
        elif not self.ended.is_set():
            self._alarm(_said(error))

    async def _note_end(self) -> None:
        self.ended.set()

    async def subscribe(self, subject: str, alarm: Callable[[str], None]) -> None:
        """``alarm`` is called with the subject of a message that was not passed on. BusError: the connection is gone."""

        async def not_handed_over(message: Msg) -> None:
            if not getattr(message, "handed_over", False):
                alarm(message.subject)

        try:
            await self._client.subscribe(subject, cb=not_handed_over)
        except Exception as e:
            raise BusError(f"subscribe to {subject}: {_said(e)}") from e
        honour_cancellation()

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Passes a message to the client; only `barrier` proves that the server has it. Raises Unsendable for a message that no
        connection can send, BusError if the connection failed."""
        try:
            if len(subject.encode()) + len(reply.encode()) > SUBJECT_BYTES:
                raise ValueError(
                    f"expected a subject and reply inbox of at most {SUBJECT_BYTES} bytes together"
                )
            await self._client.publish(subject, payload, reply=reply)
        except (nats.errors.MaxPayloadError, nats.errors.BadSubjectError, ValueError) as e:
            raise Unsendable(f"{len(payload)} bytes on {subject[:200]!r}: {_said(e)}") from e
        except Exception as e:
            raise BusError(f"publish on {subject}: {_said(e)}") from e
        honour_cancellation()

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that this server accepts."""
        return int(self._client.max_payload)

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    async def barrier(self, timeout_s: float = 2.0) -> None:
        """Returns when the server has everything that was published before.

        Raises BusError if that is not known within ``timeout_s``. The connection is closed then, because a PONG that arrives after
        the wait for it was given up would end nats-py's read loop (docs/bus.md, "One client a connection").
        """
        try:
            await self._raced(self._barrier(), timeout_s)
        except BaseException:
            await self.close()
            raise

    async def _barrier(self) -> None:
        # flush() after a publish proves nothing: its PING can overtake pending bytes, and once the read loop has ended flush()
        # reports success. So wait until no bytes are pending, then use rtt(), which fails without a read loop.
        while self._client.pending_data_size:  # noqa: ASYNC110  (nats-py has no event for what it has written)
            await asyncio.sleep(0.001)
        await self._client.rtt(2)

    async def _raced(self, work: Awaitable[None], timeout_s: float) -> None:
        task = asyncio.ensure_future(work)
        end = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait({task, end}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self.ended.is_set():
                raise BusError("the connection ended")
            if not task.done():
                raise BusError(f"the server has not replied for {timeout_s:g} s")
            if (error := task.exception()) is not None:
                raise BusError(_said(error)) from error
        finally:
            for one in (task, end):
                one.cancel()
            await asyncio.gather(task, end, return_exceptions=True)

    async def close(self) -> None:
        """Closes at once and discards unsent bytes; call `barrier` first where they matter. Never raises. Takes at most 0.5 s."""
        self.ended.set()
        _discard_pending(self._client)
        task = asyncio.ensure_future(self._client.close())
        try:
            await asyncio.wait({task}, timeout=CLOSE_TIMEOUT_S)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _discard_pending(client: Client) -> None:
    client._pending.clear()
    client._pending_data_size = 0
    # abort the socket's transport even with TLS, because a TLS transport that has ended raises
    writer: asyncio.StreamWriter | None = getattr(client._transport, "_bare_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def honour_cancellation() -> None:
    """nats-py swallows CancelledError while it flushes. A task that was cancelled meanwhile ends here instead."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
