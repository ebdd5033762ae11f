"""What a staging says, live: kept while the task is registered, bounded, for any number of followers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

LIMIT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    at_s: float
    stream: str
    data: bytes


class StagingLog:
    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._bytes = 0
        self._grown = asyncio.Event()
        self.closed = False

    def add(self, data: bytes, stream: str = "stdout") -> None:
        if self._bytes + len(data) > LIMIT_BYTES:
            return  # the buildpack's own spool still has it; a follower of megabytes is told no more
        self._pieces.append(Piece(time.time(), stream, data))
        self._bytes += len(data)
        self._wake()

    def say(self, line: str) -> None:
        self.add(f"{line}\n".encode())

    def close(self) -> None:
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    def tail(self, size_bytes: int) -> str:
        data = b"".join(piece.data for piece in self._pieces)
        return data[-size_bytes:].decode(errors="replace")

    async def follow(self) -> AsyncIterator[Piece]:
        at = 0
        while True:
            grown = self._grown
            while at < len(self._pieces):
                yield self._pieces[at]
                at += 1
            if self.closed:
                return
            await grown.wait()
