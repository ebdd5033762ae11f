"""The stagings of this host: accepted, refused, stopped; and what is told of each (dea-bus.md 3.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from agent.bus import messages as m
from agent.bus.connection import Bus
from agent.resources import Claim, Short
from agent.snapshot import SavedStaging
from agent.staging.buildpacks import StagingFailed
from agent.staging.task import Staged, StagingTask, Workshop

STOPPED = "Error staging: task stopped"
RESTARTED = "Error staging: the agent was restarted"


class StagingRegistry:
    """``begin`` owns background tasks; ``start`` starts the staged app; ``lacks`` asks for room."""

    def __init__(
        self,
        shop: Workshop,
        bus: Bus,
        *,
        begin: Callable[[StagingTask], None],
        start: Callable[[m.StartMessage], None],
        lacks: Callable[[Claim], Short | None],
        changed: Callable[[], None],
    ) -> None:
        self._shop = shop
        self._bus = bus
        self._begin = begin
        self._start = start
        self._lacks = lacks
        self._changed = changed
        self._tasks: dict[str, StagingTask] = {}
        self._stopping: set[str] = set()
        self._runs: dict[str, asyncio.Task[None]] = {}

    def claims(self) -> tuple[Claim, ...]:
        return tuple(Claim(task.memory_mb, task.disk_mb) for task in self._tasks.values())

    def saved(self) -> tuple[SavedStaging, ...]:
        return tuple(
            SavedStaging(task.message.task_id, task.message.app_id, task.reply_to)
            for task in self._tasks.values()
        )

    def find(self, task_id: str) -> StagingTask | None:
        return self._tasks.get(task_id)

    def __len__(self) -> int:
        return len(self._tasks)

    def stage(self, message: m.StagingStart, reply_to: str) -> None:
        """In wire order, without waiting: refused at once, or begun."""
        if "/" in message.task_id or message.task_id in ("", ".", ".."):
            raise m.MessageError(f"task_id: {message.task_id!r} is no name")
        start = m.convert(m.StartMessage, message.start_message) if message.start_message else None
        task = StagingTask(message, reply_to, start, self._shop)
        short = self._lacks(Claim(task.memory_mb, task.disk_mb))
        if short is not None:
            task.log.warning("staging_refused", short=short.value)
            error = f"Not enough {short.value} resources available"
            self._bus.tell(m.StagingRefused(message.task_id, error), reply_to=reply_to)
            return
        self._tasks[message.task_id] = task
        task.log.info("staging_begun", stack=message.stack, memory_mb=task.memory_mb)
        self._changed()
        self._begin(task)

    def stop_app(self, app_id: str) -> None:
        for task in [one for one in self._tasks.values() if one.message.app_id == app_id]:
            self.stop_one(task)

    def stop_one(self, task: StagingTask) -> None:
        task_id = task.message.task_id
        if task_id in self._stopping:
            return
        self._stopping.add(task_id)
        task.log.info("staging_stopped")
        self._bus.tell(m.StagingRefused(task_id, STOPPED), reply_to=task.reply_to)
        if (run := self._runs.get(task_id)) is not None:
            run.cancel()

    def stop_all(self) -> None:
        for task in tuple(self._tasks.values()):
            self.stop_one(task)

    async def run(self, task: StagingTask) -> None:
        """The life of a task. Never cancelled itself: a stop cancels the work below it."""
        task_id = task.message.task_id
        work = asyncio.create_task(self._work(task), name=f"staging-{task_id[:8]}")
        self._runs[task_id] = work
        if task_id in self._stopping:
            work.cancel()
        try:
            await asyncio.wait({work})
            if not work.cancelled() and (error := work.exception()) is not None:
                task.log.error("staging_broke", error=repr(error), exc_info=error)
                self._tell_failure(
                    task, StagingFailed("Error staging: internal error", "StagingError", repr(error))
                )
        finally:
            task.output.close()
            del self._runs[task_id]
            self._stopping.discard(task_id)
            if self._tasks.get(task_id) is task:
                del self._tasks[task_id]
            self._changed()

    async def _work(self, task: StagingTask) -> None:
        async with AsyncExitStack() as held:
            try:
                container = await task.set_up(held)
            except StagingFailed as e:
                self._bus.tell(m.StagingReply1(task.message.task_id, None, str(e)), reply_to=task.reply_to)
                self._tell_failure(task, e)
                return
            self._bus.tell(m.StagingReply1(task.message.task_id), reply_to=task.reply_to)
            try:
                staged = await task.stage(container)
            except StagingFailed as e:
                self._tell_failure(task, e)
                return
        self._tell_success(task, staged)

    def _tell_failure(self, task: StagingTask, failed: StagingFailed) -> None:
        task.log.warning("staging_failed", error=str(failed), said=task.output.tail(2000))
        if failed.kind is None:
            reply = m.StagingReply2(task.message.task_id, task.message.app_id, error=failed.error)
        else:
            info = m.ErrorInfo(failed.kind, failed.message or failed.error)
            reply = m.StagingReply2(
                task.message.task_id, task.message.app_id, error=failed.error, error_info=info
            )
        self._bus.tell(reply, reply_to=task.reply_to)

    def _tell_success(self, task: StagingTask, staged: Staged) -> None:
        outcome, message = staged.outcome, task.message
        task.log.info(
            "staging_done", sha1=staged.sha1, bytes=staged.size_bytes, buildpack=outcome.detected_name
        )
        reply = m.StagingReply2(
            message.task_id,
            message.app_id,
            outcome.detected_name,
            outcome.buildpack.key,
            staged.sha1,
            outcome.start_command,
            outcome.processes,
        )
        self._bus.tell(reply, reply_to=task.reply_to)
        # Its own reservation goes first, so that the app can have the room.
        if self._tasks.get(message.task_id) is task:
            del self._tasks[message.task_id]
        if task.start is not None:
            self._start(m.with_sha1(task.start, staged.sha1))
