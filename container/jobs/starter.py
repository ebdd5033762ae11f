"""The jobs of one container: how each kind is started, and who knows of which.

Three kinds (PROTOCOL.md, "2. The socket"): on the spool, on pipes between it and the manager, on a terminal. No descriptor of a
caller's is handed over.
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
    """The container has no job of that id on its spool (any more)."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}")
        self.job_id = job_id


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a job ended, and the output that was kept."""

    status: ExitStatus
    stdout: bytes
    stderr: bytes


class DirectJob:
    """A job that is not on the spool; its status is in a record that only we hold."""

    def __init__(self, wshd: Wshd, job_id: str, pid: int, record: int) -> None:
        self.id, self.pid = job_id, pid
        self._wshd, self._record = wshd, record
        self._status: ExitStatus | None = None

    async def wait(self) -> ExitStatus:
        if self._status is None:
            try:
                self._status = parse_status(*await self._wshd.wait(self.id))
            except (WshdError, WshdGone):
                # It has ended and is forgotten, or pid 1 is dead: the record says what there is to know.
                status = self._status or parse_record(os.pread(self._record, 4096, 0)).status
                self._status = status or LOST
        return self._status

    async def signal(self, number: int) -> None:
        with suppress(WshdGone, WshdError):
            await self._wshd.signal(self.id, number)

    def __del__(self) -> None:
        os.close(self._record)


class PipedJob(DirectJob):
    """A job on pipes; a stream that was not asked for is /dev/null. Leaving the block closes our ends."""

    def __init__(
        self, wshd: Wshd, job_id: str, pid: int, record: int, pipes: Mapping[str, Pipe], over: asyncio.Event
    ) -> None:
        super().__init__(wshd, job_id, pid, record)
        self._pipes, self._over = pipes, over

    def pipe(self, name: str) -> Pipe:
        """Our end of ``stdin``, ``stdout`` or ``stderr``. KeyError: it was not asked for."""
        return self._pipes[name]

    async def wait(self) -> ExitStatus:
        """Until its first process has ended. Streams may still be held open by others."""
        status = await super().wait()
        self._over.set()
        return status

    async def run(self, moving: Coroutine[Any, Any, T]) -> tuple[T, ExitStatus, str]:
        """Until the job has ended, while ``moving`` reads or writes its streams: what that returns, the status, and the
        beginning of stderr where there is such a pipe. An error of ``moving`` ends the job and is raised.
        """
        try:
            async with asyncio.TaskGroup() as group:
                ends = group.create_task(self.wait(), name=f"job-end-{self.id}")
                moves = group.create_task(moving, name=f"job-streams-{self.id}")
                said = group.create_task(self._errors(), name=f"job-errors-{self.id}")
        except BaseExceptionGroup as failed:  # the first that failed has ended the others
            await self.signal(signal.SIGKILL)
            raise failed.exceptions[0] from None
        return moves.result(), ends.result(), said.result().decode(errors="replace").strip()

    async def _errors(self) -> bytes:
        return await self._pipes["stderr"].beginning(STDERR_BYTES) if "stderr" in self._pipes else b""

    def close(self) -> None:
        """Idempotent."""
        for pipe in self._pipes.values():
            pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TerminalJob(DirectJob):
    """A job on a terminal of the container; ``master`` belongs to the caller."""

    def __init__(self, wshd: Wshd, job_id: str, pid: int, record: int, master: int) -> None:
        super().__init__(wshd, job_id, pid, record)
        self.master = master

    async def resize(self, rows: int, cols: int) -> None:
        """The window has another size. After the end of the job nothing happens."""
        with suppress(WshdGone):
            await self._wshd.winsize(self.id, rows, cols)


class Jobs:
    """Starts jobs and remembers those on the spool. ``check`` raises when the container takes no job now."""

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
            raise  # as on a cancellation
        except (WshdError, WshdGone, OSError):
            # Not on cancellation: the request may have been carried out, and the job stays known.
            self.known.pop(job.id, None)
            spool.remove()
            raise
        finally:
            spool.close()
        job.pid, job.clamped = started.pid, started.clamped
        return job

    async def run(self, spec: JobSpec) -> RunResult:
        if refuse_blocking(spec):
            raise SpecError("output.past", "run() reads at the end; expected kill or drop-oldest, got block")
        job = await self.spawn(spec)
        status = await job.wait()
        result = RunResult(status, await job.output("stdout"), await job.output("stderr"))
        await self.forget(job.id)
        return result

    def find(self, job_id: str) -> Job:
        """UnknownJob."""
        try:
            return self.known[job_id]
        except KeyError:
            raise UnknownJob(job_id) from None

    async def forget(self, job_id: str) -> None:
        """UnknownJob; WshdError EBUSY: it still runs."""
        await self.find(job_id).forget()

    def _drop(self, job: Job) -> None:
        """Called by each job that has removed its files: this is the only list of jobs."""
        if self.known.get(job.id) is job:
            del self.known[job.id]

    async def piped(self, spec: JobSpec, names: Collection[str]) -> PipedJob:
        """``names``: of stdin, stdout, stderr."""
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
        """What wshd knows of the ends of jobs, where their records do not say it. WshdSilent, WshdGone, WshdError."""
        for listed in await self._host.wshd.jobs(timeout_s):
            ended = listed.ended
            if ended is not None and (job := self.known.get(listed.job)) is not None:
                job.settle(parse_status(*ended))

    async def recover(self) -> None:
        """After a restart of the manager: take up the jobs whose files lie in the spool."""
        listed: dict[str, int] = {}
        died = False
        try:
            listed = {job.job: job.pid for job in await self._host.wshd.jobs(RECOVERY_TIMEOUT_S)}
        except WshdGone:  # just now: its jobs are lost, which is not the same as unknown; or it is silent
            died = True
        for job_id in found_jobs(self._host.spool):
            job = Job(self._host, job_id, pid=listed.get(job_id, 0))
            started = died or job_id in listed or job.record().status is not None
            if not started or not job.has_files():
                # The manager died between making the files and wshd's taking them, or while it forgot the
                # job.
                job.remove_files()
                continue
            self.known[job_id] = job
        # Also those without files here: on pipes or a terminal of a former manager or of an operator's.
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
        """No request is ever sent twice from here, so a job that is there already is somebody else's. WshdError EEXIST."""
        started = await self._host.wshd.spawn(job_id, keys, fds)
        if started.again:
            raise WshdError("EEXIST", f"job {job_id} is there already")
        return started

    def _owner(self, user: int) -> int:
        return users.host_id(self._ids.first, user)

    def _id(self, spec: JobSpec) -> str:
        if spec.job_id is not None:
            if spec.job_id in self.known:
                raise SpecError("job_id", f"{spec.job_id!r} is in use")
            return spec.job_id
        while str(self._next) in self.known:
            self._next += 1
        self._next += 1
        return str(self._next - 1)
