"""Starts the jobs of one container, of each kind, and lists those on the spool.

There are three kinds (PROTOCOL.md, "2. The socket"). The output goes to the spool, to pipes of the manager, or to a terminal.
A descriptor of a caller is never passed to a job.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from container import files, users
from container.errors import ContainerError
from container.jobs.job import Job, JobHost, refuse_blocking, spawn_keys
from container.jobs.pipes import Pipe
from container.jobs.records import LOST, ExitStatus, parse_record, parse_status
from container.jobs.spool import SpoolFiles, found_jobs
from container.pools import IdLease
from container.spec import JobSpec, SpecError
from container.wshd import RECOVERY_TIMEOUT_S, Started, Wshd, WshdError, WshdGone, WshdSilent

STDERR_BYTES: Final = 4096


class UnknownJob(ContainerError, LookupError):
    """The container has no job of that id on its spool, or has none any more."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the container has no job {job_id!r} on its spool")
        self.job_id = job_id


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a job ended, and the output that was kept of it."""

    status: ExitStatus
    stdout: bytes
    stderr: bytes


class DirectJob:
    """A job that is not on the spool. Its record is a memory file that only the manager holds."""

    def __init__(self, wshd: Wshd, job_id: str, pid: int, record: int) -> None:
        self.id, self.pid = job_id, pid
        self._wshd, self._record = wshd, record
        self._status: ExitStatus | None = None

    async def wait(self) -> ExitStatus:
        if self._status is None:
            try:
                self._status = parse_status(*await self._wshd.wait(self.id))
            except (WshdError, WshdGone):
                # wshd has forgotten the ended job, or pid 1 is dead; what is known is in the record.
                status = self._status or parse_record(os.pread(self._record, 4096, 0)).status
                self._status = status or LOST
        return self._status

    async def signal(self, number: int) -> None:
        with suppress(WshdGone, WshdError):
            await self._wshd.signal(self.id, number)

    def __del__(self) -> None:
        os.close(self._record)


class PipedJob(DirectJob):
    """A job on pipes; other streams are /dev/null. Leaving the block closes the manager's ends."""

    def __init__(
        self, wshd: Wshd, job_id: str, pid: int, record: int, pipes: Mapping[str, Pipe], over: asyncio.Event
    ) -> None:
        super().__init__(wshd, job_id, pid, record)
        self._pipes, self._over = pipes, over

    def pipe(self, name: str) -> Pipe:
        """The manager's end of ``stdin``, ``stdout`` or ``stderr``. KeyError: it was not requested."""
        return self._pipes[name]

    async def wait(self) -> ExitStatus:
        """Waits until its first process has ended. Other processes may still hold its streams open."""
        status = await super().wait()
        self._over.set()
        return status

    async def run(self, moving: Coroutine[Any, Any, T]) -> tuple[T, ExitStatus, str]:
        """Waits until the job has ended, while ``moving`` reads or writes its streams.

        Returns the result of ``moving``, the status, and the beginning of stderr (empty without that pipe). An error of
        ``moving`` kills the job and is raised.
        """
        try:
            async with asyncio.TaskGroup() as group:
                ends = group.create_task(self.wait(), name=f"job-end-{self.id}")
                moves = group.create_task(moving, name=f"job-streams-{self.id}")
                errors = group.create_task(self._errors(), name=f"job-errors-{self.id}")
        except BaseExceptionGroup as failed:  # the first failure has cancelled the other tasks
            await self.signal(signal.SIGKILL)
            raise failed.exceptions[0] from None
        return moves.result(), ends.result(), errors.result().decode(errors="replace").strip()

    async def _errors(self) -> bytes:
        return await self._pipes["stderr"].beginning(STDERR_BYTES) if "stderr" in self._pipes else b""

    def close(self) -> None:
        """Closes the manager's ends. Idempotent."""
        for pipe in self._pipes.values():
            pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TerminalJob(DirectJob):
    """A job on a terminal of the container. The caller must close ``master``."""

    def __init__(self, wshd: Wshd, job_id: str, pid: int, record: int, master: int) -> None:
        super().__init__(wshd, job_id, pid, record)
        self.master = master

    async def resize(self, rows: int, cols: int) -> None:
        """Sets the size of the terminal. After the end of the job nothing happens."""
        with suppress(WshdGone):
            await self._wshd.winsize(self.id, rows, cols)


class Jobs:
    """Starts jobs, and lists those on the spool. ``check`` raises if the container accepts no job in its state."""

    def __init__(self, host: JobHost, ids: IdLease, check: Callable[[], None]) -> None:
        self._host, self._ids, self._check = host, ids, check
        host.forgotten = self._drop
        self.known: dict[str, Job] = {}
        self._next = 1

    async def spawn(self, spec: JobSpec) -> Job:
        self._check()
        job = Job(self._host, self._id(spec))
        spool = SpoolFiles(self._host.spool, job.id)
        fds = dict(spool.fds)
        try:
            if spec.stdin is not None:
                spool.fds["stdin"] = fds["stdin"] = files.bytes_fd(spec.stdin, self._owner(spec.user))
            self.known[job.id] = job
            keys = spawn_keys(spec, "spool", tuple(fds))
            started = await self._ask_for(job.id, keys, tuple(fds.values()))
        except WshdSilent:
            raise  # the request may have been carried out: see below
        except (WshdError, WshdGone, OSError):
            # Not on a cancellation or silence: the job may have been started, so it stays in the list.
            self.known.pop(job.id, None)
            spool.remove()
            raise
        finally:
            spool.close()
        job.pid, job.clamped = started.pid, started.clamped
        return job

    async def run(self, spec: JobSpec) -> RunResult:
        if refuse_blocking(spec):
            why = "run() reads the output only after the end"
            raise SpecError("output.past", f"expected kill or drop-oldest, got block: {why}")
        job = await self.spawn(spec)
        status = await job.wait()
        result = RunResult(status, await job.output("stdout"), await job.output("stderr"))
        await self.forget(job.id)
        return result

    def find(self, job_id: str) -> Job:
        """The job of that id. UnknownJob."""
        try:
            return self.known[job_id]
        except KeyError:
            raise UnknownJob(job_id) from None

    async def forget(self, job_id: str) -> None:
        """Removes an ended job. UnknownJob; WshdError EBUSY: it still runs."""
        await self.find(job_id).forget()

    def _drop(self, job: Job) -> None:
        """Called by each job that was forgotten. `known` is the only list of jobs."""
        if self.known.get(job.id) is job:
            del self.known[job.id]

    async def piped(self, spec: JobSpec, names: Collection[str]) -> PipedJob:
        """Starts a job on pipes. ``names``: which of stdin, stdout, stderr get one."""
        pipes: dict[str, Pipe] = {}
        over = asyncio.Event()
        try:
            for name in names:
                pipes[name] = Pipe(self._owner(spec.user), over, to_job=name == "stdin")
            given = {name: pipe.theirs for name, pipe in pipes.items()}
            job_id, started, record = await self._start(spec, "direct", given)
        except BaseException:
            for pipe in pipes.values():
                pipe.close()
            raise
        for pipe in pipes.values():
            pipe.close_theirs()
        return PipedJob(self._host.wshd, job_id, started.pid, record, pipes, over)

    async def terminal(self, spec: JobSpec, rows: int, cols: int) -> TerminalJob:
        size = [("rows", str(rows)), ("cols", str(cols))]
        job_id, started, record = await self._start(spec, "terminal", {}, size)
        assert started.master is not None, "wshd sent no terminal"
        return TerminalJob(self._host.wshd, job_id, started.pid, record, started.master)

    async def look(self, timeout_s: float) -> None:
        """Asks wshd which jobs have ended, for those whose record lacks the end. WshdSilent, WshdGone, WshdError."""
        for listed in await self._host.wshd.jobs(timeout_s):
            ended = listed.ended
            if ended is not None and (job := self.known.get(listed.job)) is not None:
                job.settle(parse_status(*ended))

    async def recover(self) -> None:
        """After a restart of the manager: take up the jobs that have files in the spool."""
        listed: dict[str, int] = {}
        died = False
        try:
            listed = {job.job: job.pid for job in await self._host.wshd.jobs(RECOVERY_TIMEOUT_S)}
        except WshdGone:  # pid 1 died just now, so its jobs are lost but known; or it is silent
            died = True
        for job_id in found_jobs(self._host.spool):
            job = Job(self._host, job_id, pid=listed.get(job_id, 0))
            started = died or job_id in listed or job.record().status is not None
            if not started or not job.has_files():
                # The manager died after it had made the files and before wshd had them, or while it removed them.
                job.remove_files()
                continue
            self.known[job_id] = job
        # New ids must also avoid jobs without files: those on pipes or a terminal, of a former manager or an operator.
        numbers = [int(job_id) for job_id in {*listed, *self.known} if job_id.isdecimal()]
        self._next = max([self._next, *(number + 1 for number in numbers)])

    async def _start(
        self, spec: JobSpec, io: str, given: Mapping[str, int], more: Iterable[tuple[str, str]] = ()
    ) -> tuple[str, Started, int]:
        self._check()
        job_id = self._id(spec)
        record = os.memfd_create("record", os.MFD_CLOEXEC)
        fds = {**given, "record": record}
        try:
            keys = [*spawn_keys(spec, io, tuple(fds)), *more]
            return job_id, await self._ask_for(job_id, keys, tuple(fds.values())), record
        except BaseException:
            os.close(record)
            raise

    async def _ask_for(self, job_id: str, keys: list[tuple[str, str]], fds: tuple[int, ...]) -> Started:
        """Sends the spawn request. WshdError EEXIST: the id exists. No request is sent twice, so that job is another one."""
        started = await self._host.wshd.spawn(job_id, keys, fds)
        if started.again:
            raise WshdError("EEXIST", f"expected a new job id, {job_id} exists")
        return started

    def _owner(self, user: int) -> int:
        return users.host_id(self._ids.first, user)

    def _id(self, spec: JobSpec) -> str:
        if spec.job_id is not None:
            if spec.job_id in self.known:
                raise SpecError("job_id", f"expected a new one, {spec.job_id!r} is in use in this container")
            return spec.job_id
        while str(self._next) in self.known:
            self._next += 1
        self._next += 1
        return str(self._next - 1)
