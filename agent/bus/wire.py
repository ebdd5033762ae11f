"""One connection of nats-py: made fresh each time, with everything switched off that we do better ourselves.

`Client.msg_class` is called by the parser once per message, in wire order, before any queue; the class made here
hands commands over from there. It never raises: an exception would leave the client deaf (bus.md 1).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from agent.config import NatsSettings

CONNECT_TIMEOUT_S = 3.0
PENDING_BYTES = 64 << 20
HandOver = Callable[[str, str, bytes], None]


class BusError(RuntimeError):
    """The connection did not do what was asked; a new one will."""


def _message_class(hand_over: HandOver) -> type[Msg]:
    class HandedOver(Msg):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            with contextlib.suppress(
                Exception
            ):  # the law of this place; the alarm is the subscription's callback
                hand_over(self.subject, self.reply, self.data)
                self.handed_over = True

    return HandedOver


class Connection:
    """A connection that lives until ``ended`` is set; then it is thrown away."""

    def __init__(self, client: Client, ended: asyncio.Event) -> None:
        self._client = client
        self.ended = ended

    @classmethod
    async def open(
        cls, settings: NatsSettings, server: str, name: str, hand_over: HandOver, alarm: Callable[[str], None]
    ) -> Connection:
        """Connects to one server. BusError: it did not work, with the reason."""
        ended = asyncio.Event()
        kind = type("GarrisonClient", (Client,), {"msg_class": _message_class(hand_over)})
        client: Client = kind()

        async def note_error(error: Exception) -> None:
            alarm(str(error) or repr(error))

        async def note_end() -> None:
            ended.set()

        options: dict[str, Any] = {
            "servers": [server],
            "name": name,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0.001,
            "connect_timeout": 2,
            "flush_timeout": 1,
            "pending_size": PENDING_BYTES,
            "error_cb": note_error,
            "disconnected_cb": note_end,
            "closed_cb": note_end,
            **_credentials(settings),
        }
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await client.connect(**options)
        except Exception as e:  # nats-py raises a dozen kinds; each means: not this server, not now
            await _close(client)
            raise BusError(f"{type(e).__name__}: {e}") from e
        return cls(client, ended)

    @property
    def server(self) -> str:
        url = self._client.connected_url
        return f"{url.hostname}:{url.port}" if url is not None else "?"

    async def subscribe(self, subject: str, alarm: Callable[[str], None]) -> None:
        async def not_handed_over(message: Msg) -> None:
            if not getattr(message, "handed_over", False):
                alarm(message.subject)

        await self._client.subscribe(subject, cb=not_handed_over)

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        try:
            await self._client.publish(subject, payload, reply=reply)
        except Exception as e:  # closed, too large, pending full: all the same to the caller
            raise BusError(f"publish on {subject}: {type(e).__name__}: {e}") from e

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    async def barrier(self, timeout_s: float = 2.0) -> None:
        """Returns when the server has everything published so far. BusError: not known."""
        await self._raced(self._barrier(), timeout_s)

    async def _barrier(self) -> None:
        # publish then flush proves nothing: the PING overtakes what is still pending (bus.md 4)
        while self._client.pending_data_size:  # noqa: ASYNC110  (nats-py tells nobody when it has written)
            await asyncio.sleep(0.001)
        await self._client.flush(2)

    async def _raced(self, work: Awaitable[None], timeout_s: float) -> None:
        task = asyncio.ensure_future(work)
        end = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait({task, end}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self.ended.is_set() or not task.done():
                raise BusError(
                    "the connection ended" if self.ended.is_set() else f"no answer in {timeout_s} s"
                )
            if (error := task.exception()) is not None:
                raise BusError(repr(error)) from error
        finally:
            for one in (task, end):
                one.cancel()
            await asyncio.gather(task, end, return_exceptions=True)

    async def close(self) -> None:
        await _close(self._client)
        self.ended.set()


async def _close(client: Client) -> None:
    """At most half a second: close() may hang on a stalled server, and cancelling it works."""
    task = asyncio.ensure_future(client.close())
    await asyncio.wait({task}, timeout=0.5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _credentials(settings: NatsSettings) -> dict[str, Any]:
    """Read anew for each connection: a rotated file counts at once."""
    options: dict[str, Any] = {}
    if settings.user is not None:
        options["user"] = settings.user
        options["password"] = settings.password or ""
    if settings.credentials_file is not None:
        options["user_credentials"] = str(settings.credentials_file)
    if settings.nkey_seed_file is not None:
        options["nkeys_seed"] = str(settings.nkey_seed_file)
    if settings.tls is not None:
        context = ssl.create_default_context(cafile=_text(settings.tls.ca_file))
        if settings.tls.cert_file is not None:
            context.load_cert_chain(str(settings.tls.cert_file), _text(settings.tls.key_file))
        options["tls"] = context
    return options


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
