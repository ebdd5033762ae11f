"""The output of a staging as a source: kept while the task is registered, bounded, for any number of readers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from agent.output import OutputChunk, Take

LIMIT_BYTES = 4 << 20


class StagingLog:
    """An `OutputSource`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._chunks: list[OutputChunk] = []
        self._ends: Counter[str] = Counter()  # where each stream ends, in bytes
        self._bytes = 0  # of the programs' output
        self._left_out = 0  # of it, since the last line of ours
        self._grown = asyncio.Event()
        self.closed = False

    def add(self, data: bytes, stream: str = "stdout", *, gap_bytes: int = 0) -> None:
        """Output of a program. Past the limit it stays in the buildpack's spool only, and a line counts what is left out.

        ``gap_bytes``: how much before it the spool has dropped.
        """
        if self._left_out or self._bytes + len(data) > LIMIT_BYTES:
            self._left_out += gap_bytes + len(data)
            return
        self._bytes += len(data)
        self._append(data, stream, gap_bytes)

    def say(self, line: str, stream: str = "stdout") -> None:
        """A line of the agent's own: it is kept also past the limit for programs."""
        if self._left_out:
            lead = "" if self._chunks and self._chunks[-1].data.endswith(b"\n") else "\n"
            self._append(f"{lead}       ({self._left_out} bytes of output are not shown)\n".encode(), stream)
            self._left_out = 0
        self._append(f"{line}\n".encode(), stream)

    def _append(self, data: bytes, stream: str, gap_bytes: int = 0) -> None:
        begins = self._ends[stream] + gap_bytes
        self._chunks.append(OutputChunk(stream, data, self._clock(), begins, gap_bytes))
        self._ends[stream] = begins + len(data)
        self._wake()

    def close(self) -> None:
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    def tail(self, size_bytes: int) -> str:
        data = b"".join(chunk.data for chunk in self._chunks)
        return data[-size_bytes:].decode(errors="replace")

    async def read(self, take: Take, *, follow: bool) -> None:
        """With ``follow`` until the staging has ended."""
        at = 0
        while True:
            grown = self._grown
            while at < len(self._chunks):
                await take(self._chunks[at])
                at += 1
            if self.closed or not follow:
                return
            await grown.wait()
