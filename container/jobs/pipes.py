"""Pipes between the manager and a job of a container, and the bytes that move through them.

A caller's own descriptor is never passed into a container: a job could open it again by /proc/self/fd, write to it past every
limit, and read what comes later. Instead the job gets one end of a new pipe, and the manager reads or writes the other end,
with a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable

from container.aio import readable, writable
from container.errors import ContainerError
from wsh.units import MIB

PIPE_BYTES = MIB
_CHUNK_BYTES = 256 << 10


class TooMuch(ContainerError, RuntimeError):
    """More bytes came out of a container than the caller allowed."""


class Pipe:
    """One stream of a job. ``ours`` is non-blocking and closed by `close`; ``theirs`` is sent with the spawn request.

    ``over`` is set when the job has ended. A process that the job left behind may hold the other end open for ever, so from
    then on nothing waits for the pipe.
    """

    def __init__(self, owner: int, over: asyncio.Event, *, to_job: bool) -> None:
        """``owner``: the host id of the job's user, who may then open /dev/stdin and the like again. OSError."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        self.ours, self.theirs = (write_fd, read_fd) if to_job else (read_fd, write_fd)
        self._over = over
        try:
            os.fchown(self.theirs, owner, owner)
            os.set_blocking(self.ours, False)
            with contextlib.suppress(
                OSError
            ):  # the user's limit of pipe memory is reached: the default size stays
                fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except BaseException:
            self.close()
            raise

    def close_theirs(self) -> None:
        """Closes this process's copy of the job's end, once the job has it. Idempotent."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def close(self) -> None:
        """Closes both ends. A job that reads sees the end of the stream. Idempotent."""
        self.close_theirs()
        if self.ours >= 0:
            os.close(self.ours)
            self.ours = -1

    async def write(self, data: bytes) -> bool:
        """Writes all of ``data``, and waits while the pipe is full. False: nobody reads any more."""
        view = memoryview(data)
        while view:
            was_over = self._over.is_set()
            try:
                view = view[os.write(self.ours, view) :]
            except BlockingIOError:
                if was_over:
                    return False
                await self._until(writable)
            except BrokenPipeError:
                return False
        return True

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yields what is read, until the last writer has closed the pipe, or the job has ended and the pipe is empty."""
        while True:
            was_over = self._over.is_set()
            try:
                piece = os.read(self.ours, _CHUNK_BYTES)
            except BlockingIOError:
                if was_over:
                    return
                await self._until(readable)
                continue
            if not piece:
                return
            yield piece

    async def _until(self, ready: Callable[[int], Awaitable[None]]) -> None:
        waiting = {
            asyncio.ensure_future(ready(self.ours)),
            asyncio.create_task(self._over.wait(), name="pipe-job-over"),
        }
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def beginning(self, keep_bytes: int) -> bytes:
        """The first ``keep_bytes`` of the stream. The rest is read and dropped, so that the job does not block."""
        kept = b""
        async for piece in self.pieces():
            kept += piece[: keep_bytes - len(kept)]
        return kept

    async def send(self, data: bytes | int) -> None:
        """Sends bytes, or everything that a descriptor has from its offset on, and closes the pipe."""
        try:
            if isinstance(data, bytes):
                await self.write(data)
                return
            while piece := await asyncio.to_thread(os.read, data, _CHUNK_BYTES):
                if not await self.write(piece):
                    return
        finally:
            self.close()

    async def receive(self, to_fd: int, limit_bytes: int) -> int:
        """Copies the stream to a descriptor and returns the number of bytes. TooMuch: it has more than ``limit_bytes``."""
        size = 0
        async for piece in self.pieces():
            size += len(piece)
            if size > limit_bytes:
                raise TooMuch(f"the container sent more than {limit_bytes} bytes")
            await asyncio.to_thread(_write_all, to_fd, piece)
        return size


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
