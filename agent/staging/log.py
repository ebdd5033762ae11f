"""The output of one staging, in memory, for any number of readers.

It exists as long as the staging is registered. Programs may add `LIMIT_BYTES`; the agent's own lines are always added, so
that a reader sees how the staging ended, however much the buildpack printed.
"""

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
        self._bytes = 0  # of the programs' output that was added
        self._left_out = 0  # bytes of output left out since the agent's last line
        self._grown = asyncio.Event()
        self.closed = False

    def add(self, data: bytes, stream: str = "stdout", *, gap_bytes: int = 0) -> None:
        """Add output of a program. Past the limit it is left out, and the agent's next line is preceded by a count of it.

        ``gap_bytes``: how many bytes the spool has dropped just before ``data``.
        """
        if self._left_out or self._bytes + len(data) > LIMIT_BYTES:
            self._left_out += gap_bytes + len(data)
            return
        self._bytes += len(data)
        self._append(data, stream, gap_bytes)

    def say(self, line: str, stream: str = "stdout") -> None:
        """Add a line of the agent's own, which no limit leaves out."""
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
        """Pass on what is there, and with ``follow`` what is added until the staging has ended."""
        at = 0
        while True:
            grown = self._grown
            while at < len(self._chunks):
                await take(self._chunks[at])
                at += 1
            if self.closed or not follow:
                return
            await grown.wait()
