"""A peer on the bus, over a raw socket. It can send several messages in one write, and keeps all received messages in order.

It subscribes to everything (`>`), so it is also the listener that an exit waits for. It does not use nats-py: a test of the
agent's message order must not depend on the client that the agent uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Said:
    """One received message. ``number`` grows with each message."""

    number: int
    at_s: float
    subject: str
    reply_to: str
    payload: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.payload)


@dataclass(frozen=True, slots=True)
class Word:
    """One message to send."""

    subject: str
    payload: bytes
    reply_to: str = ""

    @classmethod
    def of(cls, subject: str, body: Any, reply_to: str = "") -> Word:
        return cls(subject, json.dumps(body).encode(), reply_to)


class NeverSaid(AssertionError):
    """The expected message did not arrive; the text lists those that did."""


class Peer:
    """A connection to a nats-server. ``heard``: all messages of others."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._listening: asyncio.Task[None] | None = None
        self._pongs = 0
        self._more = asyncio.Event()
        self.heard: list[Said] = []

    @classmethod
    async def open(cls, port: int, user: str, password: str) -> Peer:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        peer = cls(reader, writer)
        peer._listening = asyncio.create_task(peer._listen(), name="peer")
        # without echo: what we say is not what we hear
        hello: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "lang": "test",
            "version": "0",
            "echo": False,
        }
        hello |= {"user": user, "pass": password}
        writer.write(b"CONNECT " + json.dumps(hello).encode() + b"\r\nSUB > 1\r\n")
        await peer.flush()
        return peer

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    # -- saying ------------------------------------------------------------------------------------------------

    async def burst(self, words: Iterable[Word]) -> None:
        """Sends all of them in one write."""
        self._writer.write(b"".join(_publish(word) for word in words))
        await self.flush()

    async def say(self, subject: str, body: Any, reply_to: str = "") -> None:
        await self.burst([Word.of(subject, body, reply_to)])

    async def flush(self) -> None:
        """Waits until the server has what was written."""
        wanted = self._pongs + 1
        self._writer.write(b"PING\r\n")
        await self._writer.drain()
        async with asyncio.timeout(10):
            while self._pongs < wanted:
                self._more.clear()
                await self._more.wait()

    # -- hearing -----------------------------------------------------------------------------------------------

    @property
    def mark(self) -> int:
        """The present position in ``heard``, for `since`."""
        return len(self.heard)

    def on(self, subject: str, since: int = 0) -> list[Said]:
        return [one for one in self.heard[since:] if one.subject == subject]

    def subjects(self, since: int = 0) -> list[str]:
        return [one.subject for one in self.heard[since:]]

    async def wait_for(
        self,
        subject: str,
        matches: Callable[[Any], bool] = lambda _: True,
        *,
        since: int = 0,
        within_s: float = 20.0,
    ) -> Said:
        """Waits for the first message on ``subject`` whose body ``matches``. NeverSaid: it did not arrive in time."""
        found: Said | None = await self.until(
            lambda: next((one for one in self.on(subject, since) if matches(one.body)), None), within_s
        )
        if found is None:
            near = "\n".join(f"  {one.payload.decode()}" for one in self.on(subject, since)[-10:])
            raise NeverSaid(f"nothing such on {subject} within {within_s} s; heard there:\n{near}")
        return found

    async def until(self, look: Callable[[], Any], within_s: float) -> Any:
        """Calls ``look`` after each message until it has a result. None: the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not (found := look()):
            if (left_s := deadline - loop.time()) <= 0:
                return None
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._more.wait()
        return found

    async def _listen(self) -> None:
        while line := await self._reader.readline():
            word, *rest = line.decode().split()
            if word == "MSG":
                subject, _, *reply_to, size = rest
                payload = (await self._reader.readexactly(int(size) + 2))[:-2]
                number = len(self.heard)
                self.heard.append(
                    Said(number, time.time(), subject, reply_to[0] if reply_to else "", payload)
                )
                self._more.set()
            elif word == "PING":
                self._writer.write(b"PONG\r\n")
            elif word == "PONG":
                self._pongs += 1
                self._more.set()


def _publish(word: Word) -> bytes:
    reply_to = f" {word.reply_to}" if word.reply_to else ""
    return f"PUB {word.subject}{reply_to} {len(word.payload)}\r\n".encode() + word.payload + b"\r\n"
