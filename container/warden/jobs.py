"""The jobs of one container as Warden's clients see them: numbered, linked by any number of clients, and then forgotten.

Invariant: a job's result is collected once, by one task, and only after its output is read the job is forgotten on the spool.
Every client that links gets that result, so no output is lost to one that comes late or leaves early.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from container.aio import finish
from container.jobs import Chunk, ExitStatus, Job
from container.spec import JobSpec, Output, Past, User
from container.warden import messages as m
from container.warden.errors import WardenError, bytes_of, text_of
from container.warden.records import SavedJob

#: What the spool keeps of a job whose output is discarded: it is never read.
_DISCARDED_BYTES: Final = 64 << 10
_PATHS: Final = {True: "/sbin:/bin:/usr/sbin:/usr/bin", False: "/bin:/usr/bin"}
SHELL: Final = "/bin/bash"
#: What a client gets for a job that was killed, that exceeded its output limit, or of which nobody knows how it ended.
_NO_CODE: Final = 255


def exit_status(status: ExitStatus) -> int:
    """The one number of the protocol."""
    return status.code if status.code is not None else _NO_CODE


@dataclass(frozen=True, slots=True)
class Account:
    """A user inside, from its passwd(5) line."""

    name: str
    number: int
    home: str


def account(passwd: bytes, name: str) -> Account:
    """WardenError: the file has no such user."""
    for line in text_of(passwd).splitlines():
        match line.split(":"):
            case [found, _, uid, _, _, home, _] if found == name and uid.isdecimal():
                return Account(name, int(uid), home or "/")
    raise WardenError(f"no user {name} in /etc/passwd of the container")


def job_spec(
    request: m.SpawnRequest, job_id: int, user: Account, rlimits: dict[str, int], limit_bytes: int, lang: str
) -> JobSpec:
    """What runs the script: a shell that reads it from its standard input."""
    env = (f"HOME={user.home}", f"USER={user.name}", f"PATH={_PATHS[request.privileged]}", f"LANG={lang}")
    output = Output(limit_bytes, Past.KILL)
    if request.discard_output:
        output = Output(_DISCARDED_BYTES, Past.DROP_OLDEST)
    return JobSpec(
        (SHELL,),
        env=env,
        user=User.ROOT if request.privileged else user.number,
        cwd=user.home,
        rlimits=rlimits,
        output=output,
        job_id=str(job_id),
        stdin=request.script,
    )


class WardenJob:
    """One job. ``info`` measures its container."""

    def __init__(
        self,
        job_id: int,
        job: Job,
        saved: SavedJob,
        info: Callable[[], Awaitable[m.InfoResponse]],
        forgotten: Callable[[int], None],
    ) -> None:
        self.id = job_id
        self.saved = saved
        self._job = job
        self._info = info
        self._forgotten = forgotten
        self._collecting: asyncio.Task[m.LinkResponse] | None = None

    @property
    def is_running(self) -> bool:
        return self._job.status is None

    def snapshot_keys(self) -> dict[str, Any]:
        """What Warden's snapshot has of a job."""
        keys: dict[str, Any] = {"discard_output": self.saved.discards_output}
        if self.saved.tag is not None:
            keys["log_tag"] = self.saved.tag.decode(errors="replace")
        if (status := self._job.status) is not None:
            keys["status"] = [exit_status(status), "", ""]
        return keys

    async def link(self) -> m.LinkResponse:
        """The result, once the job has ended. The job is forgotten then."""
        if self._collecting is None:
            self._collecting = asyncio.create_task(self._collect(), name=f"warden-job-{self.id}")
        return await asyncio.shield(self._collecting)

    async def ended(self) -> None:
        """Returns when the job has ended and, if clients link it, when they have their result."""
        await self._job.wait()
        if self._collecting is not None:
            await asyncio.wait({self._collecting})

    async def _collect(self) -> m.LinkResponse:
        status = await self._job.wait()
        stdout, stderr = b"", b""
        if not self.saved.discards_output:
            stdout, stderr = await self._job.output("stdout"), await self._job.output("stderr")
        response = m.LinkResponse(exit_status(status), stdout, stderr, await self._info())
        await self._job.forget()
        self._forgotten(self.id)
        return response

    async def stream(self) -> AsyncIterator[m.StreamResponse]:
        """All output from its beginning, and the end. The job stays if the client leaves before that."""
        if not self.saved.discards_output:
            async for chunk in self._job.stream():
                yield _streamed(chunk)
        status = await self._job.wait()
        yield m.StreamResponse(exit_status=exit_status(status), info=await self._info())
        await finish(asyncio.create_task(self._forget()))

    async def _forget(self) -> None:
        if self._collecting is None:
            await self._job.forget()
            self._forgotten(self.id)


def _streamed(chunk: Chunk) -> m.StreamResponse:
    return m.StreamResponse(name=bytes_of(chunk.stream), data=chunk.data)
