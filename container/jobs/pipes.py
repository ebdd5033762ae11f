"""Pipes between the manager and a job of a container, and the moving of bytes through them.

No descriptor of a caller's enters a container: a job could open it again by /proc/self/fd, write to it past every limit, and read
what comes later. It gets an end of a pipe that was made for it, and our end is read and written here, with a bound.
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
    """More bytes came out of a container than the caller takes."""


class Pipe:
    """One stream of a job. ``ours`` is non-blocking and closed by `close`; ``theirs`` goes with the spawn request.

    ``over`` is set when the job has ended: a process that it left behind may hold its end open for ever, so from then on nothing is
    waited for.
    """

    def __init__(self, owner: int, over: asyncio.Event, *, to_job: bool) -> None:
        """``owner``: the host's number of the job's user, who may then open /dev/stdin and the like again."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        self.ours, self.theirs = (write_fd, read_fd) if to_job else (read_fd, write_fd)
        self._over = over
        try:
            os.fchown(self.theirs, owner, owner)
            os.set_blocking(self.ours, False)
            with contextlib.suppress(OSError):  # past the user's share of pipe memory: the usual size
                fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except BaseException:
            self.close()
            raise

    def close_theirs(self) -> None:
        """The end that the job has by now; idempotent."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def close(self) -> None:
        """Idempotent. To a job that reads it is the end of the stream."""
        self.close_theirs()
        if self.ours >= 0:
            os.close(self.ours)
            self.ours = -1

    async def write(self, data: bytes) -> bool:
        """Waits while the job is behind. False: nobody reads any more."""
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
        """Until the last writer has closed it, or until the job is over and the pipe is empty."""
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
        """The first bytes of what comes; the rest is read and dropped, so that the job does not wait for us."""
        kept = b""
        async for piece in self.pieces():
            kept += piece[: keep_bytes - len(kept)]
        return kept

    async def send(self, data: bytes | int) -> None:
        """Bytes, or those of a descriptor from where it stands to its end; then the end of the stream."""
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
        """Into a descriptor of the caller's; returns how many. TooMuch: more than ``limit_bytes``, which are never passed."""
        size = 0
        async for piece in self.pieces():
            size += len(piece)
            if size > limit_bytes:
                raise TooMuch(f"more than {limit_bytes} bytes")
            await asyncio.to_thread(_write_all, to_fd, piece)
        return size


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
