"""The memory as the other parts of the agent use it: they mark what has changed, and then publish what depends on it.

A mark (`keep`) increases the generation. One task writes the marked records, one by one, in a thread of its own; a mark made during
a write belongs to the next write. A publisher notes the generation and waits for it (`wait_written`), so that the next agent knows
everything that a peer was told. A record that cannot be written delays nobody: after one try it is logged, counts as settled, and
is tried again later. The same holds for a disk that does not respond.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from agent.logs import Log
from agent.memory.store import RecordStore

#: After a write that failed (a full disk), when to try again.
RETRY_S = 5.0
#: A disk that takes longer is treated as one that refuses: peers take a silent agent for dead.
PATIENCE_S = 5.0

Compose = Callable[[], bytes | None]
"""A record's bytes as they are now; None: there is no such record any more. Called on the event loop."""


class _Due(NamedTuple):
    compose: Compose
    after: Callable[[bytes], None] | None


class _Write(NamedTuple):
    key: tuple[str, str]
    due: _Due
    data: bytes | None


class Memory:
    def __init__(self, store: RecordStore, log: Log) -> None:
        self._store = store
        self._log = log
        self._due: dict[tuple[str, str], _Due] = {}
        self._failed: dict[tuple[str, str], _Due] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._logged_at_s = float("-inf")
        self._marked = 0
        self._settled = 0
        self._wake = asyncio.Event()
        self._moved = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="memory")

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    # -- for who changes something -----------------------------------------------------------------------------

    def keep(
        self, section: str, name: str, compose: Compose, *, after: Callable[[bytes], None] | None = None
    ) -> None:
        """Marks a record as changed. Several marks in one turn of the event loop are one write.

        ``after``: called with the bytes that were written.
        """
        self._due[section, name] = _Due(compose, after)
        self._marked += 1
        self._wake.set()

    # -- for who publishes -------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """The number of marks so far."""
        return self._marked

    async def wait_written(self, generation: int) -> None:
        """Returns when all marks up to ``generation`` are on disk, or were tried once."""
        if self._settled >= generation:
            return
        try:
            async with asyncio.timeout(PATIENCE_S), self._moved:
                await self._moved.wait_for(lambda: self._settled >= generation)
        except TimeoutError:
            if self._settled < generation:
                self._log.error(
                    "memory_not_written_in_time", after_s=PATIENCE_S, consequence="publishing all the same"
                )
                await self._settle(generation)

    # -- writing -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Writes marked records until it is cancelled."""
        self._wake.set()  # an error may have ended this before
        while True:
            await self._wake.wait()
            await self.save(again=False)

    async def save(self, *, again: bool = True) -> bool:
        """Writes all marked records. False: some could not be written, which is logged.

        ``again``: records that could not be written before are tried once more.
        """
        async with self._writing:
            self._wake.clear()
            if again:
                self._take_failed()
            due, self._due = self._due, {}
            generation = self._marked
            writes = [one for key, what in due.items() if (one := self._composed(key, what)) is not None]
            loop = asyncio.get_running_loop()
            try:
                errors = await loop.run_in_executor(self._thread, self._write_all, writes)
            except BaseException:  # cancelled, or an error of ours: nothing is known to be written
                self._due = {**due, **self._due}
                raise
            for write in writes:
                if write.key in errors:
                    self._failed[write.key] = write.due
                    continue
                self._failed.pop(write.key, None)
                if write.due.after is not None and write.data is not None:
                    self._tell_after(write.key, write.due.after, write.data)
            if errors:
                self._note_errors(errors)
            await self._settle(generation)
        return not self._failed

    def _take_failed(self) -> None:
        self._retry = None
        self._due = {**self._failed, **self._due}
        self._failed.clear()
        if self._due:
            self._wake.set()

    def _note_errors(self, errors: dict[tuple[str, str], str]) -> None:
        loop = asyncio.get_running_loop()
        if self._retry is None:
            self._retry = loop.call_later(RETRY_S, self._take_failed)
        if loop.time() - self._logged_at_s >= RETRY_S:
            self._logged_at_s = loop.time()
            (section, name), error = next(iter(errors.items()))
            self._log.error(
                "memory_not_written_retrying", records=len(errors), record=f"{section}/{name}", error=error
            )

    def _composed(self, key: tuple[str, str], due: _Due) -> _Write | None:
        """A record that cannot be composed is logged and left out; the others are written."""
        try:
            return _Write(key, due, due.compose())
        except Exception as e:  # the outermost frame of a record
            self._log.exception("memory_record_not_made", record="/".join(key), error=repr(e))
            return None

    def _tell_after(self, key: tuple[str, str], after: Callable[[bytes], None], data: bytes) -> None:
        try:
            after(data)
        except Exception as e:  # the copy is a second chance; the record itself stands
            self._log.warning("memory_copy_not_written", record="/".join(key), error=repr(e))

    def _write_all(self, writes: list[_Write]) -> dict[tuple[str, str], str]:
        """Runs in the thread. Returns the records that could not be written, with the errors."""
        failed = {}
        for (section, name), _, data in writes:
            try:
                self._store.write(section, name, data)
            except OSError as e:
                failed[section, name] = str(e)
        return failed

    async def _settle(self, generation: int) -> None:
        async with self._moved:
            self._settled = max(self._settled, generation)
            self._moved.notify_all()
