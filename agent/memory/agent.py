"""What this agent remembers of itself (its id and phase) and of its stagings. The records of instances are in instances.py."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from agent.logs import Log
from agent.memory import records
from agent.memory.ahead import RETRY_S, Memory
from agent.memory.records import Head, SavedStaging
from agent.memory.store import HEAD, STAGINGS, RecordStore, staging_name
from agent.phases import AgentPhase


class AgentMemory:
    """Reads what a former agent left (``found``), and keeps the records up to date for the next one."""

    def __init__(
        self,
        base_dir: Path,
        log: Log,
        *,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._clock = clock
        self._log = log
        self._store = RecordStore(base_dir / "db", base_dir / "agent.id")
        self.written = Memory(self._store, log)
        self.found = self._store.read()
        for one in self.found.damage:
            event = "memory_of_a_later_version_left_alone" if one.later else "memory_record_damaged"
            log.error(event, path=str(one.path), error=one.why)
        if self.found.head is None:
            log.info("agent_new")
            self.found.head = Head(agent_id=str(uuid.UUID(hex=new_id(16), version=4)))
        self._head = self.found.head

    @property
    def agent_id(self) -> str:
        return self._head.agent_id

    @property
    def head(self) -> Head:
        return self._head

    async def take_possession(self) -> bool:
        """Writes all records that were found in this release's format, and the head last, which marks them as converted. False:
        something could not be written. Then the former files remain until another call succeeds, since records removed meanwhile
        would otherwise come back."""
        is_written = await self.written.save()
        if is_written:
            self._keep_head()
            is_written = await self.written.save()
        try:
            self._store.write_id(self.agent_id)
        except OSError as e:
            self._log.warning("agent_id_not_written", error=str(e))
        return is_written

    async def take_possession_later(self) -> None:
        """Repeats `take_possession` until it has succeeded."""
        await asyncio.sleep(RETRY_S)
        while not await self.take_possession():  # noqa: ASYNC110  (a disk tells nobody when it has room again)
            await asyncio.sleep(RETRY_S)

    # -- the agent itself --------------------------------------------------------------------------------------

    def enter(self, phase: AgentPhase) -> None:
        """Records that a phase has begun. Idempotent."""
        if phase is not self._head.phase:
            self._head = Head(agent_id=self.agent_id, phase=phase, since_s=self._clock())
            self._keep_head()

    def _keep_head(self) -> None:
        self.written.keep(HEAD, "agent", lambda: records.encode(self._head))

    # -- stagings ----------------------------------------------------------------------------------------------

    def save_staging(self, task_id: str, reply_to: str, saved: Callable[[], SavedStaging | None]) -> None:
        def compose() -> bytes | None:
            return records.encode(one) if (one := saved()) is not None else None

        self.written.keep(STAGINGS, staging_name(task_id, reply_to), compose)

    def take_up_staging(self, name: str, saved: SavedStaging) -> None:
        self.written.keep(STAGINGS, name, lambda: records.encode(saved))

    def forget_staging(self, name: str) -> None:
        self.written.keep(STAGINGS, name, lambda: None)
