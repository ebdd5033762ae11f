"""The interface of program output: its chunks, and how a source passes them to a reader.

The sources are `agent/instances/output.py` for the instances of an app and `agent/staging/log.py` for a staging. The readers
are the control socket, which shows output, and the crash records, which keep it.

A reader passes a function to `OutputSource.read`, which awaits it for each chunk. A slow reader delays only its own reading:
meanwhile the bytes stay in the container's spool or in the source, and no queue grows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from agent.depot import AgentJob

#: The streams of a program.
STREAMS: Final = ("stdout", "stderr")
#: The stream of the agent's own lines about an instance or a staging.
AGENT: Final = "sys"


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """A piece of one stream.

    ``at_s``: when it was written, in seconds since 1970; None: unknown, since it was written before the reading began.
    ``offset``: where it begins in its stream, in bytes. ``gap_bytes``: how many bytes were dropped just before it.
    ``instance``, ``index``: the instance that wrote it; None: a staging wrote it.
    """

    stream: str
    data: bytes
    at_s: float | None = None
    offset: int = 0
    gap_bytes: int = 0
    instance: str | None = None
    index: int | None = None


Take = Callable[[OutputChunk], Awaitable[None]]
"""Called with each chunk. An error that it raises ends `OutputSource.read`, which raises it to the caller."""


class OutputSource(Protocol):
    """An app or a staging whose output can be read."""

    async def read(self, take: Take, *, follow: bool) -> None:
        """Call ``take`` for the output that is kept, and with ``follow`` also for later output, until the source has ended."""
        ...


async def job_chunks(
    job: AgentJob, clock: Callable[[], float], *, follow: bool
) -> AsyncIterator[OutputChunk]:
    """The output of a program, both streams. The spool keeps no times, so only output that is written from now on has one."""
    known = {name: job.size_bytes(name) for name in STREAMS}
    async for chunk in job.stream(None, follow=follow):
        at_s = clock() if chunk.offset >= known[chunk.stream] else None
        yield OutputChunk(chunk.stream, chunk.data, at_s, chunk.offset, chunk.gap_bytes)
