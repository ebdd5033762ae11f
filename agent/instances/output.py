"""The output of an app's instances as one source: what is kept of them, the agent's own lines, and how each ended.

A running instance is read from the spool of its container, a crashed one from what is kept of its crash.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from agent.instances import crashes
from agent.instances.crashes import cause_of
from agent.instances.instance import Instance, State
from agent.instances.registry import Registry
from agent.output import AGENT, STREAMS, OutputChunk, Take, job_chunks

#: The output ends a moment before it is known how the instance ended.
SETTLE_S = 5.0
_GOING_ON = frozenset({State.BORN, State.STARTING, State.RUNNING, State.EVACUATING})


@dataclass(frozen=True, slots=True)
class AppOutput:
    """An `OutputSource`. ``instances``: called at each change, returns the instances to show."""

    instances: Callable[[], Iterable[Instance]]
    registry: Registry
    crashes_dir: Path
    clock: Callable[[], float]

    async def read(self, take: Take, *, follow: bool) -> None:
        """With ``follow`` it runs until it is cancelled, and includes instances that are added later. Chunks come one at a time."""
        one_at_a_time = asyncio.Lock()

        async def take_in_turn(chunk: OutputChunk) -> None:
            async with one_at_a_time:
                await take(chunk)

        read: set[str] = set()
        try:
            # the reader of changes first: an instance that comes while the others are looked at is a change
            with self.registry.changes() as changes:
                async with asyncio.TaskGroup() as group:
                    while True:
                        for one in self.instances():
                            if one.id not in read and (one.web is not None or one.state is State.CRASHED):
                                read.add(one.id)
                                work = self._read_one(one, take_in_turn, follow=follow)
                                group.create_task(work, name=f"output-{one.id[:8]}")
                        if not follow:
                            return
                        await changes.next()
        except BaseExceptionGroup as failed:  # the first that failed has ended the others
            raise failed.exceptions[0] from None

    async def _read_one(self, one: Instance, take: Take, *, follow: bool) -> None:
        async def take_of_one(chunk: OutputChunk) -> None:
            await take(replace(chunk, instance=one.id, index=one.index))

        remarks = _Remarks(one, take_of_one)
        beside = (
            asyncio.create_task(remarks.follow(self.registry), name=f"output-remarks-{one.id[:8]}")
            if follow
            else None
        )
        try:
            async for chunk in self._chunks(one, follow=follow):
                await take_of_one(chunk)
        finally:
            if beside is not None:
                beside.cancel()
                await asyncio.gather(beside, return_exceptions=True)
        await remarks.pass_on_new()
        if follow:
            await self._settled(one)
        if one.state is State.CRASHED:
            cause = await asyncio.to_thread(cause_of, self.crashes_dir / one.id)
            text = f"{cause}{one.exit.description}, exit status {one.exit.status}\n"
            await take_of_one(OutputChunk(AGENT, text.encode(), float(one.crashed_at_s)))
        elif follow:
            await take_of_one(OutputChunk(AGENT, b"stopped on request\n", self.clock()))

    async def _chunks(self, one: Instance, *, follow: bool) -> AsyncIterator[OutputChunk]:
        if one.web is not None and one.state is not State.CRASHED:
            async for chunk in job_chunks(one.web.job, self.clock, follow=follow):
                yield chunk
            return
        for stream in STREAMS:
            kept = await asyncio.to_thread(crashes.kept, self.crashes_dir / one.id, stream)
            if kept is not None:
                yield kept

    async def _settled(self, one: Instance) -> None:
        with self.registry.changes(one) as changes, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while one.state in _GOING_ON:
                    await changes.next()


class _Remarks:
    """The agent's own lines about an instance: each is passed on once, also while the app writes nothing."""

    def __init__(self, one: Instance, take: Take) -> None:
        self._one, self._take = one, take
        self._last: tuple[float, str] | None = None

    async def pass_on_new(self) -> None:
        kept = list(self._one.remarks)
        # by identity: of two with the same text only one is the last that was passed on
        at = next((n + 1 for n, remark in enumerate(kept) if remark is self._last), 0)
        for remark in kept[at:]:
            self._last = remark
            at_s, text = remark
            await self._take(OutputChunk(AGENT, f"{text}\n".encode(), at_s))

    async def follow(self, registry: Registry) -> None:
        with registry.changes(self._one) as changes:
            while True:
                await self.pass_on_new()
                await changes.next()
