"""The output of a staging, live: kept while the task is registered, bounded, for any number of followers."""

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
        self._bytes = 0  # of the programs' output
        self._left_out = 0  # of it, since the last line of ours
        self._grown = asyncio.Event()
        self.closed = False

    def add(self, data: bytes, stream: str = "stdout") -> None:
        """Output of a program. Past the limit it stays in the buildpack's spool only, and a line counts what is left out."""
        if self._left_out or self._bytes + len(data) > LIMIT_BYTES:
            self._left_out += len(data)
            return
        self._bytes += len(data)
        self._append(data, stream)

    def say(self, line: str, stream: str = "stdout") -> None:
        """A line of the agent's own: it is kept also past the limit for programs."""
        if self._left_out:
            lead = "" if self._pieces and self._pieces[-1].data.endswith(b"\n") else "\n"
            self._append(f"{lead}       ({self._left_out} bytes of output are not shown)\n".encode(), stream)
            self._left_out = 0
        self._append(f"{line}\n".encode(), stream)

    def _append(self, data: bytes, stream: str) -> None:
        self._pieces.append(Piece(time.time(), stream, data))
        self._wake()

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
