"""The stagings of this host: accepted, refused, stopped; and what is published of each (docs/protocol.md, "Staging replies")."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass

from msgspec import structs

from agent.admission import Admission
from agent.bus import messages as m
from agent.bus.connection import Bus
from agent.cause import host_paths, public
from agent.memory import SavedStaging
from agent.phases import Phases
from agent.resources import Claim
from agent.staging.buildpacks import StagingFailed
from agent.staging.log import Piece
from agent.staging.task import Staged, StagingTask, Workshop

STOPPED = "Error staging: task stopped"
RESTARTED = "Error staging: the agent was restarted"
FAILURES_KEPT = 256
ENDED_KEPT = 4  # so that who asks for the output of a quick staging still gets it


@dataclass(eq=False)
class _Run:
    """``over``: its last reply is told, so nothing more is said and its room is free; ``kept``: the outbox has that reply."""

    task: StagingTask
    work: asyncio.Task[None] | None = None
    over: bool = False
    kept: bool = False

    def saved(self) -> SavedStaging | None:
        """What the next agent must know of it; None: nothing any more."""
        message = self.task.message
        return None if self.kept else SavedStaging(message.task_id, message.app_id, self.task.reply_to)


class StagingRegistry:
    """``begin`` owns background tasks; ``start`` starts the staged app, unless the host has left the pool; ``changed`` marks
    what is remembered of a staging, named by its task and its inbox, as changed."""

    def __init__(
        self,
        shop: Workshop,
        bus: Bus,
        admission: Admission,
        phases: Phases,
        *,
        begin: Callable[[str, Coroutine[None, None, None]], None],
        start: Callable[[m.StartMessage], None],
        changed: Callable[[str, str, Callable[[], SavedStaging | None]], None],
    ) -> None:
        self._shop = shop
        self._bus = bus
        self._admission = admission
        self._phases = phases
        self._begin = begin
        self._start = start
        self._changed = changed
        self._runs: list[_Run] = []
        self._ended: deque[StagingTask] = deque(maxlen=ENDED_KEPT)
        self._failures: dict[str, Piece] = {}  # of each app the last staging's, if that failed; oldest first

    def _under_way(self) -> tuple[_Run, ...]:
        return tuple(run for run in self._runs if not run.over)

    def _save(self, run: _Run) -> None:
        self._changed(run.task.message.task_id, run.task.reply_to, run.saved)

    def find(self, task_id: str) -> StagingTask | None:
        """The newest of that id: under way, or ended just now."""
        tasks = (*self._ended, *(run.task for run in self._runs))
        return next((one for one in reversed(tasks) if one.message.task_id == task_id), None)

    def failure_of(self, app_id: str) -> Piece | None:
        """What the app's log says of its last staging; None: it did not fail, or that is long ago."""
        return self._failures.get(app_id)

    def __len__(self) -> int:
        return len(self._under_way())

    def stage(self, message: m.StagingStart, reply_to: str) -> None:
        """In wire order, without waiting: refused at once, or begun. Whatever is wrong with it, it is answered."""
        try:
            start = m.convert(m.StartMessage, message.start_message) if message.start_message else None
            task = StagingTask(message, reply_to, start, self._shop)
            claim = Claim(task.memory_mb, task.disk_mb)
            short = self._admission.lacks(claim)
        except m.MessageError as e:
            self.refuse(message.task_id, f"Error staging: start_message: {e}", reply_to)
            return
        except Exception as e:  # the outermost frame of a request: who asked must not wait for nothing
            self._shop.log.exception("staging_broke", task=message.task_id, error=repr(e))
            self.refuse(message.task_id, "Error staging: internal error", reply_to)
            return
        if short is not None:
            self.refuse(message.task_id, f"Not enough {short.value} resources available", reply_to)
            return
        run = _Run(task)
        self._runs.append(run)
        self._admission.hold(run, claim)
        task.log.info("staging_begun", stack=message.stack, memory_mb=task.memory_mb)
        self._save(run)
        self._begin(task.message.task_id, self._live(run))

    def refuse(self, task_id: str, error: str, reply_to: str) -> None:
        """The only reply of a staging that is not begun."""
        self._shop.log.warning("staging_refused", task=task_id, error=error)
        self._bus.publish_event(m.StagingRefused(task_id, error), reply_to=reply_to)

    def stop_app(self, app_id: str) -> None:
        for run in self._under_way():
            if run.task.message.app_id == app_id:
                self._stop(run)

    def stop_all(self) -> None:
        for run in self._under_way():
            self._stop(run)

    def _stop(self, run: _Run) -> None:
        run.task.log.info("staging_stopped")
        self._tell_last(run, m.StagingRefused(run.task.message.task_id, STOPPED))
        if run.work is not None:
            run.work.cancel()

    async def _live(self, run: _Run) -> None:
        """The life of a task. Never cancelled itself: a stop cancels the work below it."""
        task = run.task
        try:
            if run.over:
                return
            run.work = asyncio.create_task(self._work(run), name=f"staging-{task.message.task_id[:8]}")
            await asyncio.wait({run.work})
            if not run.work.cancelled() and (error := run.work.exception()) is not None:
                task.log.error("staging_broke", error=repr(error), exc_info=error)
                self._tell_failure(
                    run, StagingFailed("Error staging: internal error", "StagingError", type(error).__name__)
                )
        finally:
            self._admission.release(run)
            self._runs.remove(run)
            self._ended.append(task)

    async def _work(self, run: _Run) -> None:
        task = run.task
        async with AsyncExitStack() as held:
            try:
                container = await task.set_up(held)
            except StagingFailed as e:
                told = str(self._public(e))
                self._bus.publish_event(
                    m.StagingReply1(task.message.task_id, None, told), reply_to=task.reply_to
                )
                self._tell_failure(run, e)
                return
            self._bus.publish_event(m.StagingReply1(task.message.task_id), reply_to=task.reply_to)
            try:
                staged = await task.stage(container)
            except StagingFailed as e:
                self._tell_failure(run, e)
                return
        self._tell_staged(run, staged)

    def _public(self, failed: StagingFailed) -> StagingFailed:
        paths = host_paths(self._shop.settings)
        return StagingFailed(public(failed.error, paths), failed.kind, public(failed.message, paths))

    def _tell_last(self, run: _Run, reply: m.StagingReply) -> None:
        """The second reply, or what replaces it; whatever comes after it is not said."""
        if run.over:
            return
        run.over = True
        self._admission.release(run)
        run.task.output.close()

        def kept() -> None:
            run.kept = True
            self._save(run)

        self._bus.publish_event(reply, reply_to=run.task.reply_to, on_kept=kept)

    def _tell_failure(self, run: _Run, failed: StagingFailed) -> None:
        """To the controller, and into the app's own log (the staging's, and the one that its instances write to)."""
        task = run.task
        task.log.warning("staging_failed", error=str(failed), said=task.output.tail(2000))
        failed = self._public(failed)
        if not run.over:
            line = f"Staging failed: {failed}"
            task.output.say(line, "sys")
            self._failures.pop(task.message.app_id, None)
            self._failures[task.message.app_id] = Piece(time.time(), "sys", f"{line}\n".encode())
            while len(self._failures) > FAILURES_KEPT:
                del self._failures[next(iter(self._failures))]
        reply = m.StagingReply2(task.message.task_id, task.message.app_id, error=failed.error)
        if failed.kind is not None:
            info = m.ErrorInfo(failed.kind, failed.message or failed.error)
            reply = structs.replace(reply, error_info=info)
        self._tell_last(run, reply)

    def _tell_staged(self, run: _Run, staged: Staged) -> None:
        """The container is gone by now, so index 0 can have its room.

        A controller that reads a checksum takes index 0 for started here and starts the others. A host that has left the
        pool starts nothing: without a checksum the controller starts all of them elsewhere.
        """
        task, outcome, message = run.task, staged.outcome, run.task.message
        starts_here = self._phases.permits.adverts
        # the reply waits for this mark, and so for that of the start, which is made in the same turn
        self._save(run)
        reply = m.StagingReply2(
            message.task_id,
            message.app_id,
            outcome.detected_name,
            outcome.buildpack.key,
            staged.sha1 if starts_here else None,
            outcome.start_command,
            outcome.processes,
        )
        self._failures.pop(message.app_id, None)
        if staged.upload_error is not None:  # the checksum is published all the same
            task.log.warning("droplet_not_uploaded", sha1=staged.sha1, error=staged.upload_error)
            task.output.say(f"Staging failed: {staged.upload_error}", "sys")
            self._tell_last(run, structs.replace(reply, error=staged.upload_error))
            return
        task.log.info(
            "staging_done", sha1=staged.sha1, bytes=staged.size_bytes, buildpack=outcome.detected_name
        )
        self._tell_last(run, reply)
        if not starts_here:
            task.log.info("staged_app_not_started_here")
        elif task.start is not None:
            self._start(m.with_sha1(task.start, staged.sha1))
