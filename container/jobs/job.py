"""A job: its files in the spool, its status, its output from any offset.

wshd moves a job's output into two append-only files and its end into a record (PROTOCOL.md, "3. Files that the manager owns"). So
all of it outlives wshd, this manager and a slow reader, and a restarted manager just reads on. Nothing is
buffered here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from container.aio import FileWatcher
from container.jobs.records import LOST, ExitStatus, JobRecord, parse_record
from container.jobs.spool import RECORD, STREAMS, Chunk, SpoolReader
from container.spec import JobSpec, Past
from container.wshd import Wshd, WshdError, WshdGone


def spawn_keys(spec: JobSpec, io: str, fds: tuple[str, ...]) -> list[tuple[str, str]]:
    """The keys and values of a spawn request. Pure."""
    uid = str(int(spec.user))
    keys = [("arg", word) for word in spec.argv]
    keys += [("env", word) for word in spec.environment]
    keys += [("uid", uid), ("gid", uid), ("cwd", spec.cwd), ("umask", f"{spec.umask:o}")]
    keys += [("rlimit", f"{name}:{value}:{value}") for name, value in spec.rlimits.items()]
    keys.append(("io", io))
    keys += [("fd", name) for name in fds]
    if io == "spool" and spec.output.limit_bytes is not None:
        keys += [("limit", str(spec.output.limit_bytes)), ("over", spec.output.past.value)]
    return keys


@dataclass(slots=True)
class JobHost:
    """What jobs share with their container."""

    spool: Path
    watcher: FileWatcher
    wshd: Wshd
    is_dead: Callable[[], bool]
    tell_overran: Callable[[], None]
    on_death: set[Callable[[], None]] = field(default_factory=set)
    #: Called with each job that is forgotten: its id is free.
    forgotten: Callable[[Job], None] = lambda job: None


class Job:
    """One job of a container, made by `Container.spawn` or found again by `Depot.recover`."""

    def __init__(self, host: JobHost, job_id: str, *, pid: int = 0) -> None:
        self.id = job_id
        self.pid = pid
        #: rlimits that this host could not raise so far: (name, value used).
        self.clamped: tuple[tuple[str, str], ...] = ()
        self._host = host
        self._status: ExitStatus | None = None
        self._is_forgotten = False

    def __repr__(self) -> str:
        return f"<Job {self.id} {self._status or 'running'}>"

    @property
    def status(self) -> ExitStatus | None:
        """None while it runs. Looked up in the record each time until it is known."""
        if self._status is None:
            self._status = self.record().status
            if self._status is None and self._host.is_dead():
                # Looked at once more: pid 1 may have written it between the two questions.
                self._status = self.record().status or LOST
            if self._status is not None and self._status.overran:
                self._host.tell_overran()
        return self._status

    def record(self) -> JobRecord:
        """Empty where it cannot be read: a broken disk hides no end, since wshd knows it too (`settle`)."""
        try:
            return parse_record(self._path(RECORD).read_bytes())
        except OSError:
            return JobRecord()

    def settle(self, status: ExitStatus) -> None:
        """wshd reports that it has ended so. Its record goes before, and is there unless it could not be written."""
        if self.status is None:
            self._status = status
            for wake in tuple(self._host.on_death):
                wake()

    async def wait(self) -> ExitStatus:
        """Until the first process has ended and its output is in the spool. Any number may wait, at any
        time.
        """
        changed = asyncio.Event()
        with self._woken(changed, RECORD):
            while (status := self.status) is None:
                await changed.wait()
                changed.clear()
        return status

    async def signal(self, number: int) -> None:
        """To the job's process group. A job that has ended: nothing happens."""
        if self.status is None:
            with suppress(WshdGone):
                try:
                    await self._host.wshd.signal(self.id, number)
                except WshdError as e:
                    if e.name not in ("ESRCH", "ENOENT"):
                        raise

    async def trim(self, stream: str, offset: int) -> None:
        """A reader has everything of ``stream`` below ``offset``: its space is given back, a `BLOCK` job
        goes on.
        """
        with suppress(WshdGone):
            await self._host.wshd.trim(self.id, stream, offset)

    async def forget(self) -> None:
        """Drop an ended job and its files; its id is free. Idempotent. WshdError EBUSY: it still runs."""
        if self._is_forgotten:  # the id may be another job's by now
            return
        with suppress(WshdGone):
            try:
                await self._host.wshd.forget(self.id)
            except WshdError as e:
                if e.name != "ENOENT":
                    raise
        self.status  # noqa: B018  the record is about to go; who waits still gets the status
        self.remove_files()
        self._is_forgotten = True
        self._host.forgotten(self)

    def has_files(self) -> bool:
        """False: they are half made or half removed."""
        return all(self._path(suffix).exists() for suffix in STREAMS.values())

    def remove_files(self) -> None:
        """The record last, see SpoolFiles."""
        for suffix in (*STREAMS.values(), RECORD):
            self._path(suffix).unlink(missing_ok=True)

    def size_bytes(self, stream: str) -> int:
        """The end offset: how much the job has written, dropped bytes included."""
        return self._path(STREAMS[stream]).stat().st_size

    async def stream(
        self, stream: str | None = None, *, offset: int = 0, follow: bool = True
    ) -> AsyncGenerator[Chunk, None]:
        """Output from ``offset`` on, of one stream or (None) of both; with ``follow`` until the job has
        ended.

        What a process left behind writes after that is read by asking again from the last offset. A job
        that runs with `Past.BLOCK` waits for `trim`.
        """
        names = tuple(STREAMS) if stream is None else (stream,)
        changed = asyncio.Event()
        with ExitStack() as opened:
            readers = [SpoolReader(opened, self._path(STREAMS[name]), name, offset) for name in names]
            if follow:
                opened.enter_context(self._woken(changed, RECORD, *(STREAMS[name] for name in names)))
            while True:
                changed.clear()
                # Asked before reading: what was written before the end is then read in this turn.
                ended = not follow or self.status is not None
                idle = True
                for reader in readers:
                    if (chunk := reader.read()) is not None:
                        idle = False
                        yield chunk
                if idle and ended:
                    return
                if idle:
                    await changed.wait()

    async def output(self, stream: str) -> bytes:
        """All that is kept of one stream now."""
        return b"".join([chunk.data async for chunk in self.stream(stream, follow=False)])

    def _path(self, suffix: str) -> Path:
        return self._host.spool / (self.id + suffix)

    def _woken(self, event: asyncio.Event, *suffixes: str) -> ExitStack:
        """``event`` is set by a write to one of the files and by the container's death."""
        stack = ExitStack()
        for suffix in suffixes:
            with suppress(FileNotFoundError):  # forgotten meanwhile
                stack.enter_context(self._host.watcher.watch(self._path(suffix), event.set))
        self._host.on_death.add(event.set)
        stack.callback(self._host.on_death.discard, event.set)
        return stack


def refuse_blocking(spec: JobSpec) -> bool:
    """Would `run`, which reads only at the end, wait for ever?"""
    return spec.output.past is Past.BLOCK and spec.output.limit_bytes is not None
