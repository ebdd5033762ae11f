"""The output of instances and stagings: one kind of chunk, and one way to read it.

Everything that shows, keeps or forwards output reads an `OutputSource`: the control socket's logs, the output that is kept
of a crash, the log of a staging. A source is `agent/instances/output.py` for the instances of an app, or
`agent/staging/log.py` for a staging.

A reader passes a function that takes chunks. The source waits for it, so a slow reader delays its own source and nothing
else: the bytes lie in the container's spool meanwhile.
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

    ``at_s``: when it was written, in seconds since 1970; None: before the reader came, and nobody knows when.
    ``offset``: where it begins in its stream, in bytes. ``gap_bytes``: how much before it is no longer kept.
    ``instance``, ``index``: of the instance that wrote it; None: a staging.
    """

    stream: str
    data: bytes
    at_s: float | None = None
    offset: int = 0
    gap_bytes: int = 0
    instance: str | None = None
    index: int | None = None


Take = Callable[[OutputChunk], Awaitable[None]]
"""A reader. An error that it raises ends the reading, and is the caller's."""


class OutputSource(Protocol):
    """What has output."""

    async def read(self, take: Take, *, follow: bool) -> None:
        """Pass on what is kept, and with ``follow`` what comes afterwards, until there can be no more."""
        ...


async def job_chunks(
    job: AgentJob, clock: Callable[[], float], *, follow: bool
) -> AsyncIterator[OutputChunk]:
    """The output of a program, both streams. The spool keeps no times: only what is written from now on has one."""
    known = {name: job.size_bytes(name) for name in STREAMS}
    async for chunk in job.stream(None, follow=follow):
        at_s = clock() if chunk.offset >= known[chunk.stream] else None
        yield OutputChunk(chunk.stream, chunk.data, at_s, chunk.offset, chunk.gap_bytes)
