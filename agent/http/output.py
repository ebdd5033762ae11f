"""The output of instances as lines of JSON to one client: first what is kept of it, then what follows.

The spool keeps bytes, not times: `at` is null for what was there before the client asked.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from aiohttp import web

from agent.instances import crashes
from agent.instances.crashes import STREAMS, cause_of
from agent.instances.instance import Instance, State
from agent.instances.registry import Registry
from container import Chunk

SETTLE_S = 5.0
_GOING_ON = frozenset({State.BORN, State.STARTING, State.RUNNING, State.EVACUATING})


class OutputLines:
    """The response, a line at a time however many speak at once. ConnectionResetError: the client has gone."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        self._lock = asyncio.Lock()

    async def begin(self) -> None:
        await self.response.prepare(self._request)

    async def write(self, data: bytes, **more: Any) -> None:
        line = json.dumps({**more, **_data(data)}, separators=(",", ":")).encode()
        async with self._lock:
            await self.response.write(line + b"\n")

    async def end(self) -> None:
        await self.response.write_eof()


def _data(data: bytes) -> dict[str, str]:
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(data).decode()}


async def tell(
    lines: OutputLines,
    instances: Callable[[], Iterable[Instance]],
    registry: Registry,
    crashes_dir: Path,
    *,
    follow: bool,
) -> None:
    """With ``follow`` until the client goes (this is cancelled then), also of instances that come later.

    ConnectionResetError: a write found the client gone.
    """
    told: set[str] = set()
    try:
        # the reader first: an instance that comes while the others are looked at is a change
        with registry.changes() as changes:
            async with asyncio.TaskGroup() as group:
                while True:
                    for one in instances():
                        if one.id not in told and (one.job is not None or one.state is State.CRASHED):
                            told.add(one.id)
                            work = _tell_one(lines, one, registry, crashes_dir, follow=follow)
                            group.create_task(work, name=f"control-output-{one.id[:8]}")
                    if not follow:
                        return
                    await changes.next()
    except BaseExceptionGroup as failed:  # the first that failed has ended the others
        raise failed.exceptions[0] from None


async def _tell_one(
    lines: OutputLines, one: Instance, registry: Registry, crashes_dir: Path, *, follow: bool
) -> None:
    facts: dict[str, Any] = {"index": one.index, "instance": one.id}
    remarks = _Remarks(lines, one, facts)
    beside = (
        asyncio.create_task(remarks.follow(registry), name=f"control-remarks-{one.id[:8]}")
        if follow
        else None
    )
    try:
        async for chunk, is_new in _chunks(one, crashes_dir, follow=follow):
            gap = {"gap_bytes": chunk.gap_bytes} if chunk.gap_bytes else {}
            at = time.time() if is_new else None
            await lines.write(chunk.data, at=at, stream=chunk.stream, **facts, **gap)
    finally:
        if beside is not None:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
    await remarks.write_new()
    if follow:
        await _settled(one, registry)
    if one.state is State.CRASHED:
        cause = await asyncio.to_thread(cause_of, crashes_dir / one.id)
        said = f"{cause}{one.exit.description}, exit status {one.exit.status}\n"
        await lines.write(said.encode(), at=one.crashed_at_s, stream="sys", **facts)
    elif follow:
        await lines.write(b"stopped on request\n", at=time.time(), stream="sys", **facts)


class _Remarks:
    """The agent's own lines about an instance: each once, also while the app says nothing."""

    def __init__(self, lines: OutputLines, one: Instance, facts: dict[str, Any]) -> None:
        self._lines, self._one, self._facts = lines, one, facts
        self._last: tuple[float, str] | None = None

    async def write_new(self) -> None:
        kept = list(self._one.remarks)
        # by identity: of two that say the same only one is the last that was written
        at = next((n + 1 for n, remark in enumerate(kept) if remark is self._last), 0)
        for remark in kept[at:]:
            self._last = remark
            at_s, text = remark
            await self._lines.write(f"{text}\n".encode(), at=at_s, stream="sys", **self._facts)

    async def follow(self, registry: Registry) -> None:
        with registry.changes(self._one) as changes:
            while True:
                await self.write_new()
                await changes.next()


async def _chunks(one: Instance, crashes_dir: Path, *, follow: bool) -> AsyncIterator[tuple[Chunk, bool]]:
    """Each with whether it was written after the request began."""
    job = one.job
    if job is not None and one.state is not State.CRASHED:
        known = {name: job.size_bytes(name) for name in STREAMS}
        async for chunk in job.stream(None, follow=follow):
            yield chunk, chunk.offset >= known[chunk.stream]
        return
    for stream in STREAMS:
        kept = await asyncio.to_thread(crashes.kept, crashes_dir / one.id, stream)
        if kept is not None:
            yield kept, False


async def _settled(one: Instance, registry: Registry) -> None:
    """The output ends a moment before it is known how the instance ended."""
    with registry.changes(one) as changes, contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while one.state in _GOING_ON:
                await changes.next()
