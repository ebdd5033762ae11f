"""Serves Warden's protocol on a Unix socket.

Each connection has two tasks. One reads frames, and notices when the client leaves. The other carries the requests out, one
after the other, and writes the responses. A client that leaves ends a request that only waits (Link, Run, Stream); any other
request is finished, so that no container is left half changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from pathlib import Path
from typing import Final

from container.aio import Log
from container.warden import codec
from container.warden import messages as m
from container.warden.codec import BadMessage
from container.warden.errors import WardenError, bytes_of
from container.warden.frames import MAX_FRAME_BYTES, BadFrame, FrameReader, pack_frame
from container.warden.service import WardenService

_READ_BYTES: Final = 1 << 16
#: Requests that only wait for a job. They end when the client leaves, and at once when the server is drained.
_WAITING: Final = (m.LinkRequest, m.RunRequest, m.StreamRequest)
_HEALTHY: Final = b"HTTP/1.1 200 OK\r\n"


class ClientConnection:
    """One client."""

    def __init__(
        self, service: WardenService, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Log
    ) -> None:
        self._service = service
        self._reader, self._writer = reader, writer
        self._log = log
        self._arrived: deque[bytes | BadFrame | None] = deque()
        self._arrived_bytes = 0
        self._changed = asyncio.Condition()
        self._request: asyncio.Task[None] | None = None
        self._is_waiting = False
        self._ending = False

    async def serve(self) -> None:
        """Until the client leaves, sends what is no frame, or the server is drained."""
        self._service.connected(self)
        reading = asyncio.create_task(self._read(), name="warden-read")
        try:
            while not self._ending and (arrived := await self._next()) is not None:
                if isinstance(arrived, BadFrame):
                    await self._send(m.ErrorResponse(bytes_of(str(arrived))))
                    break
                await self._carry_out(arrived)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client has left, or the server is drained
        finally:
            reading.cancel()
            self._service.disconnected(self)
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def drain(self) -> None:
        """Closes it as soon as no request is being carried out. One that only waits is ended."""
        self._ending = True
        if self._request is None or self._is_waiting:
            self._leave()

    def _leave(self) -> None:
        if self._request is not None:
            self._request.cancel()
        self._reader.feed_eof()

    # -- reading -----------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        frames = FrameReader()
        try:
            while data := await self._reader.read(_READ_BYTES):
                frames.feed(data)
                while (frame := frames.next()) is not None:
                    await self._arrive(frame)
        except BadFrame as bad:
            await self._arrive(bad)
            return
        except ConnectionError:
            pass
        if self._is_waiting and self._request is not None:
            self._request.cancel()
        await self._arrive(None)

    async def _arrive(self, what: bytes | BadFrame | None) -> None:
        async with self._changed:
            if isinstance(what, bytes):
                await self._changed.wait_for(lambda: self._arrived_bytes <= MAX_FRAME_BYTES)
                self._arrived_bytes += len(what)
            self._arrived.append(what)
            self._changed.notify_all()

    async def _next(self) -> bytes | BadFrame | None:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._arrived))
            what = self._arrived.popleft()
            if isinstance(what, bytes):
                self._arrived_bytes -= len(what)
            self._changed.notify_all()
            return what

    # -- requests ----------------------------------------------------------------------------------------------

    async def _carry_out(self, frame: bytes) -> None:
        try:
            request = decode_request(frame)
        except BadMessage as bad:
            self._log.warning("warden_message_refused", error=str(bad))
            await self._send(m.ErrorResponse(bytes_of(str(bad))))
            return
        self._is_waiting = isinstance(request, _WAITING)
        self._request = asyncio.create_task(self._respond(request), name=f"warden-{type(request).__name__}")
        try:
            await asyncio.wait({self._request})
            if self._request.cancelled():
                raise ConnectionAbortedError
            self._request.result()
        finally:
            self._request, self._is_waiting = None, False

    async def _respond(self, request: object) -> None:
        try:
            async for response in self._service.respond(request, self):
                await self._send(response)
        except WardenError as e:
            await self._send(m.ErrorResponse(bytes_of(str(e))))
        except ConnectionError:
            raise
        except Exception as e:  # the outermost frame of a request: the client must not wait for ever
            kind = type(request).__name__
            self._log.warning("warden_request_broke", request=kind, error=repr(e), exc_info=e)
            await self._send(m.ErrorResponse(b"internal error; the server's log has more"))

    async def _send(self, response: object) -> None:
        message = m.Message(m.RESPONSE_TYPES[type(response)], codec.encode(response))
        self._writer.write(pack_frame(codec.encode(message)))
        await self._writer.drain()


def decode_request(frame: bytes) -> object:
    """BadMessage: it is no request."""
    message = codec.decode(m.Message, frame)
    request, _ = m.CLASSES[message.type]
    if request is None:
        raise BadMessage(f"type: expected a request, got {message.type.name}")
    return codec.decode(request, message.payload)


class Server:
    """``path``: the socket, made with the permissions ``mode``."""

    def __init__(self, service: WardenService, path: Path, mode: int, log: Log) -> None:
        self._service = service
        self._path, self._mode = path, mode
        self._log = log
        self._connections: dict[ClientConnection, asyncio.Task[None]] = {}
        self._listeners: list[asyncio.Server] = []

    async def open(self, health_port: int | None) -> None:
        """Listens. The mode is set before the first connection is accepted. OSError."""
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listening.bind(str(self._path))
        os.chmod(self._path, self._mode)  # noqa: PTH101  (before listen)
        self._listeners.append(await asyncio.start_unix_server(self._accept, sock=listening))
        if health_port:
            health = await asyncio.start_server(self._answer_health, "127.0.0.1", health_port)
            self._listeners.append(health)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = ClientConnection(self._service, reader, writer, self._log)
        task = asyncio.current_task()
        assert task is not None
        self._connections[connection] = task
        try:
            await connection.serve()
        finally:
            del self._connections[connection]

    async def _answer_health(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                await reader.read(_READ_BYTES)
            writer.write(_HEALTHY)
            await writer.drain()
        writer.close()

    async def drain(self) -> None:
        """Accepts nobody any more. Returns when the last connection has ended."""
        for one in self._listeners:
            one.close()
        tasks = list(self._connections.values())
        for connection in tuple(self._connections):
            connection.drain()
        if tasks:
            await asyncio.wait(tasks)

    def close(self) -> None:
        """Plain end: connections are cut off."""
        for one in self._listeners:
            one.close()
        for task in self._connections.values():
            task.cancel()
        self._path.unlink(missing_ok=True)
