"""A job: its files in the spool, its status, its output from any offset.

wshd appends a job's output to two files and writes its end into a record (PROTOCOL.md, "3. Files that the manager owns").
So all of it outlives wshd and this manager, a restarted manager reads on, and a slow reader loses nothing. Nothing is
buffered here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from resource import RLIM_INFINITY

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
    for name, value in spec.rlimits.items():
        word = "infinity" if value == RLIM_INFINITY else str(value)
        keys.append(("rlimit", f"{name}:{word}:{word}"))
    keys.append(("io", io))
    keys += [("fd", name) for name in fds]
    if io == "spool" and spec.output.limit_bytes is not None:
        keys += [("limit", str(spec.output.limit_bytes)), ("over", spec.output.past.value)]
    return keys


@dataclass(slots=True)
class JobHost:
    """What all jobs of one container use."""

    spool: Path
    watcher: FileWatcher
    wshd: Wshd
    is_dead: Callable[[], bool]
    on_overran: Callable[[], None]
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
        """How it ended; None while it runs. The record is read each time until it has the end."""
        if self._status is None:
            self._status = self.record().status
            if self._status is None and self._host.is_dead():
                # Read once more: pid 1 may have written the record before it died, but after the read above.
                self._status = self.record().status or LOST
            if self._status is not None and self._status.overran:
                self._host.on_overran()
        return self._status

    def record(self) -> JobRecord:
        """The parsed record; empty if it cannot be read. On a broken disk wshd still reports the end (`settle`)."""
        try:
            return parse_record(self._path(RECORD).read_bytes())
        except OSError:
            return JobRecord()

    def settle(self, status: ExitStatus) -> None:
        """Takes the end that wshd reports, if the record does not have it because it could not be written."""
        if self.status is None:
            self._status = status
            for wake in tuple(self._host.on_death):
                wake()

    async def wait(self) -> ExitStatus:
        """Waits until the first process has ended and its output is in the spool. Any number of callers may wait."""
        changed = asyncio.Event()
        with self._woken(changed, RECORD):
            while (status := self.status) is None:
                await changed.wait()
                changed.clear()
        return status

    async def signal(self, number: int) -> None:
        """Sends a signal to the job's process group. If the job has ended, nothing happens. WshdError."""
        if self.status is None:
            with suppress(WshdGone):
                try:
                    await self._host.wshd.signal(self.id, number)
                except WshdError as e:
                    if e.name not in ("ESRCH", "ENOENT"):
                        raise

    async def trim(self, stream: str, offset: int) -> None:
        """Frees the spool of ``stream`` below ``offset``, which a reader has read. A job with `Past.BLOCK` goes on."""
        with suppress(WshdGone):
            await self._host.wshd.trim(self.id, stream, offset)

    async def forget(self) -> None:
        """Removes an ended job and its files, and frees its id. Idempotent. WshdError EBUSY: it still runs."""
        if self._is_forgotten:  # another job may have the id by now
            return
        with suppress(WshdGone):
            try:
                await self._host.wshd.forget(self.id)
            except WshdError as e:
                if e.name != "ENOENT":
                    raise
        self.status  # noqa: B018  read before the record is removed, for those that wait
        self.remove_files()
        self._is_forgotten = True
        self._host.forgotten(self)

    def has_files(self) -> bool:
        """False: its files are half made or half removed."""
        return all(self._path(suffix).exists() for suffix in STREAMS.values())

    def remove_files(self) -> None:
        """Removes the files, the record last (see SpoolFiles)."""
        for suffix in (*STREAMS.values(), RECORD):
            self._path(suffix).unlink(missing_ok=True)

    def size_bytes(self, stream: str) -> int:
        """How much the job has written, with the bytes that were dropped. This is the end offset."""
        return self._path(STREAMS[stream]).stat().st_size

    async def stream(
        self, stream: str | None = None, *, offset: int = 0, follow: bool = True
    ) -> AsyncGenerator[Chunk, None]:
        """Yields output from ``offset`` on, of one stream or (None) of both. With ``follow`` until the job has ended.

        A process that the job left behind may write later; call again with the last offset to read that. A job with
        `Past.BLOCK` waits for `trim`.
        """
        names = tuple(STREAMS) if stream is None else (stream,)
        changed = asyncio.Event()
        with ExitStack() as opened:
            readers = [SpoolReader(opened, self._path(STREAMS[name]), name, offset) for name in names]
            if follow:
                opened.enter_context(self._woken(changed, RECORD, *(STREAMS[name] for name in names)))
            while True:
                changed.clear()
                # Before the read: so this turn reads everything that was written before the end.
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
        """Everything that the spool keeps of one stream now."""
        return b"".join([chunk.data async for chunk in self.stream(stream, follow=False)])

    def _path(self, suffix: str) -> Path:
        return self._host.spool / (self.id + suffix)

    def _woken(self, event: asyncio.Event, *suffixes: str) -> ExitStack:
        """Sets ``event`` at each write to one of the files, and when the container dies."""
        stack = ExitStack()
        for suffix in suffixes:
            with suppress(FileNotFoundError):  # the job was forgotten meanwhile
                stack.enter_context(self._host.watcher.watch(self._path(suffix), event.set))
        self._host.on_death.add(event.set)
        stack.callback(self._host.on_death.discard, event.set)
        return stack


def refuse_blocking(spec: JobSpec) -> bool:
    """True if `run`, which reads only after the end, would wait for ever."""
    return spec.output.past is Past.BLOCK and spec.output.limit_bytes is not None
