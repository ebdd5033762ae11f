"""Accepts, refuses and stops stagings, and publishes how each of them ends.

Invariant: each request with an inbox is answered. A request that is not accepted gets one reply, at once. One that is
accepted gets two: the first when its container is there or cannot be, the last when it has ended. A stop replaces the last
one. `_end` is the only place that publishes a last reply, and publishes one for a run at most, so a stop and the end of
the work may race.

Two asyncio tasks belong to a staging. `_live` is begun by the worker's supervisor and is never cancelled; it owns the task
of `_work`, which a stop cancels. With one task a stop would also cancel the code that releases the claim and publishes.

What the next agent must know is marked in the memory before anything is published that follows from it: the bus holds each
message back until the marks made before it are on disk (agent/bus/sender.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Final

from agent.admission import Admission
from agent.bus import messages as m
from agent.bus.connection import Bus
from agent.cause import host_paths
from agent.memory import SavedStaging
from agent.phases import Phases
from agent.staging.buildpacks import StagingFailed
from agent.staging.registry import StagingRegistry
from agent.staging.replies import failure_reply, public_failure, success_reply
from agent.staging.run import StagingRun
from agent.staging.task import Staged, StagingParts, StagingTask

STOPPED: Final = "Error staging: task stopped"
RESTARTED: Final = "Error staging: the agent was restarted"
LOGGED_CHARACTERS: Final = 2048  # of a failed staging's output, in the agent's log


class StagingKeeper:
    """``begin`` starts a background task for a task id. ``start`` starts the staged app. ``changed`` marks the record of a
    staging, named by its task id and inbox, as changed; the memory then calls the function it was given for the new record."""

    def __init__(
        self,
        parts: StagingParts,
        registry: StagingRegistry,
        bus: Bus,
        admission: Admission,
        phases: Phases,
        *,
        begin: Callable[[str, Coroutine[None, None, None]], None],
        start: Callable[[m.StartMessage], None],
        changed: Callable[[str, str, Callable[[], SavedStaging | None]], None],
    ) -> None:
        self._parts = parts
        self._registry = registry
        self._bus = bus
        self._admission = admission
        self._phases = phases
        self._begin = begin
        self._start = start
        self._changed = changed

    # -- requests ----------------------------------------------------------------------------------------------

    def stage(self, message: m.StagingStart, reply_to: str) -> None:
        """Refuse the staging, or begin it. Called in the order of the messages, so it does not wait."""
        try:
            start = m.convert(m.StartMessage, message.start_message) if message.start_message else None
            task = StagingTask(message, reply_to, start, self._parts)
            short = self._admission.lacks(task.claim)
        except m.MessageError as e:
            self.refuse(message.task_id, f"Error staging: start_message: {e}", reply_to)
            return
        except Exception as e:  # the outermost frame of a request: its sender must get a reply
            self._parts.log.exception("staging_internal_error", task=message.task_id, error=repr(e))
            self.refuse(message.task_id, "Error staging: internal error", reply_to)
            return
        if short is not None:
            self.refuse(message.task_id, f"Not enough {short.value} resources available", reply_to)
            return
        run = StagingRun(task)
        self._registry.add(run)
        self._admission.hold(run, task.claim)
        task.log.info("staging_begun", stack=message.stack, memory_mb=task.claim.memory_mb)
        self._save(run)
        self._begin(message.task_id, self._live(run))

    def refuse(self, task_id: str, error: str, reply_to: str) -> None:
        """Publish the only reply to a request that is not accepted."""
        self._parts.log.warning("staging_refused", task=task_id, error=error)
        self._bus.publish_event(m.StagingRefused(task_id, error), reply_to=reply_to)

    def stop_app(self, app_id: str) -> None:
        """Stop the app's stagings."""
        for run in self._registry.of_app(app_id):
            self._stop(run)

    def stop_all(self) -> None:
        """Stop every staging of the host."""
        for run in self._registry.under_way():
            self._stop(run)

    def _stop(self, run: StagingRun) -> None:
        run.task.log.info("staging_stopped")
        self._end(run, m.StagingRefused(run.task.message.task_id, STOPPED))
        if run.work is not None:
            run.work.cancel()

    # -- the life of a staging ---------------------------------------------------------------------------------

    async def _live(self, run: StagingRun) -> None:
        """Run the work and release the claim. Never cancelled itself: a stop cancels only ``run.work``."""
        task = run.task
        try:
            if run.over:
                return
            run.work = asyncio.create_task(self._work(run), name=f"staging-{task.message.task_id[:8]}")
            await asyncio.wait({run.work})
            if not run.work.cancelled() and (error := run.work.exception()) is not None:
                task.log.error("staging_internal_error", error=repr(error), exc_info=error)
                self._fail(
                    run, StagingFailed("Error staging: internal error", "StagingError", type(error).__name__)
                )
        finally:
            self._admission.release(run)
            self._registry.remove(run)

    async def _work(self, run: StagingRun) -> None:
        task = run.task
        async with AsyncExitStack() as held:
            try:
                container = await task.set_up(held)
            except StagingFailed as e:
                self._publish_first(task, str(self._public(e)))
                self._fail(run, e)
                return
            self._publish_first(task, None)
            try:
                staged = await task.stage(container)
            except StagingFailed as e:
                self._fail(run, e)
                return
        self._finish(run, staged)

    # -- what is published -------------------------------------------------------------------------------------

    def _publish_first(self, task: StagingTask, error: str | None) -> None:
        self._bus.publish_event(m.StagingReply1(task.message.task_id, None, error), reply_to=task.reply_to)

    def _end(self, run: StagingRun, reply: m.StagingReply) -> None:
        """Publish the last reply, unless one was published before."""
        if run.over:
            return
        run.over = True
        self._admission.release(run)
        run.task.output.close()

        def kept() -> None:
            run.kept = True
            self._save(run)

        self._bus.publish_event(reply, reply_to=run.task.reply_to, on_kept=kept)

    def _fail(self, run: StagingRun, failed: StagingFailed) -> None:
        """Report the failure to the controller, in the staging's output, and in the app's log."""
        task = run.task
        task.log.warning("staging_failed", error=str(failed), output=task.output.tail(LOGGED_CHARACTERS))
        failed = self._public(failed)
        if not run.over:
            line = f"Staging failed: {failed}"
            task.output.say(line, "sys")
            self._registry.note_failure(task.message.app_id, line)
        self._end(run, failure_reply(task.message, failed))

    def _finish(self, run: StagingRun, staged: Staged) -> None:
        """Publish the success, and start index 0 here. The container was removed before, so its memory and disk are free.

        A host that has left the pool does not start it. Its reply then lacks the checksum, see `success_reply`.
        """
        task, message = run.task, run.task.message
        starts_here = self._phases.permits.adverts
        # the bus holds the reply until this mark is on disk; `_start` below marks in the same turn of the loop, so a
        # killed agent can never have published a success without a record of the start
        self._save(run)
        reply = success_reply(message, staged, with_checksum=starts_here)
        self._registry.note_success(message.app_id)
        if staged.upload_error is not None:  # the reply still has the checksum
            task.log.warning("droplet_not_uploaded", sha1=staged.sha1, error=staged.upload_error)
            task.output.say(f"Staging failed: {staged.upload_error}", "sys")
            self._end(run, reply)
            return
        task.log.info(
            "staging_done",
            sha1=staged.sha1,
            bytes=staged.size_bytes,
            buildpack=staged.outcome.detected_name,
        )
        self._end(run, reply)
        if not starts_here:
            task.log.info("staged_app_not_started_here")
        elif task.start is not None:
            self._start(m.with_sha1(task.start, staged.sha1))

    def _public(self, failed: StagingFailed) -> StagingFailed:
        return public_failure(failed, host_paths(self._parts.settings))

    def _save(self, run: StagingRun) -> None:
        self._changed(run.task.message.task_id, run.task.reply_to, run.saved)
