"""One staging on its way through this host, as the keeper and the registry see it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agent.memory import SavedStaging
from agent.staging.task import StagingTask


@dataclass(eq=False)
class StagingRun:
    """``over``: its last reply was published, so nothing more is published of it and its claim is released.
    ``kept``: that reply is in the outbox, so the memory may forget the staging."""

    task: StagingTask
    work: asyncio.Task[None] | None = None
    over: bool = False
    kept: bool = False

    def saved(self) -> SavedStaging | None:
        """What the next agent must know of it; None: nothing."""
        message = self.task.message
        return None if self.kept else SavedStaging(message.task_id, message.app_id, self.task.reply_to)
