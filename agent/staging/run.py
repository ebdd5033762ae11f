"""The state of one staging, as the keeper and the registry use it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agent.memory import SavedStaging
from agent.staging.task import StagingTask


@dataclass(eq=False)
class StagingRun:
    """``over``: the last reply was published. Nothing more is published, and the claim is released.
    ``kept``: the outbox has that reply, or it was sent. So the memory may drop the record."""

    task: StagingTask
    work: asyncio.Task[None] | None = None
    over: bool = False
    kept: bool = False

    def saved(self) -> SavedStaging | None:
        """The record for the next agent, which must still send the last reply; None: no longer needed."""
        message = self.task.message
        return None if self.kept else SavedStaging(message.task_id, message.app_id, self.task.reply_to)
