"""What a staging says, kept for its followers."""

from __future__ import annotations

import pytest

from agent.output import OutputChunk
from agent.staging.log import LIMIT_BYTES, StagingLog

pytestmark = pytest.mark.unit


async def test_our_own_lines_stand_behind_any_output() -> None:
    """A buildpack that prints megabytes is cut, once and said; why the staging failed is shown all the same."""
    log = StagingLog(lambda: 1.0)
    log.say("-----> Downloaded")
    log.add(b"x" * (LIMIT_BYTES - 10))
    log.add(b"y" * 30)
    log.add(b"z")  # would fit again, but not where it belongs
    log.say("bin/compile failed: exit status 1")
    log.say("Staging failed: compile", "sys")
    log.close()

    said: list[tuple[str, bytes]] = []

    async def take(chunk: OutputChunk) -> None:
        said.append((chunk.stream, chunk.data))

    await log.read(take, follow=True)
    assert [data for _, data in said[2:]] == [
        b"\n       (31 bytes of output are not shown)\n",
        b"bin/compile failed: exit status 1\n",
        b"Staging failed: compile\n",
    ]
    assert said[-1][0] == "sys"
    assert sum(len(data) for _, data in said) < LIMIT_BYTES + 200


async def test_what_the_spool_dropped_is_reported_before_what_follows_it() -> None:
    """A buildpack may write faster than its output is read; offsets count what is missing."""
    log = StagingLog(lambda: 1.0)
    log.add(b"abc")
    log.add(b"xyz", gap_bytes=1000)
    log.add(b"!")
    log.close()

    chunks: list[OutputChunk] = []

    async def take(chunk: OutputChunk) -> None:
        chunks.append(chunk)

    await log.read(take, follow=True)
    assert [(chunk.data, chunk.offset, chunk.gap_bytes) for chunk in chunks] == [
        (b"abc", 0, 0),
        (b"xyz", 1003, 1000),
        (b"!", 1006, 0),
    ]
