"""The jobs of one container as Warden's clients see them: numbered, linked by any number of clients, and then forgotten.

Invariant: a job's result is collected once, by one task, when the job has ended and a client links it. Only after its output
is read the job is forgotten on the spool. Every client that links then gets that result, and one that leaves before takes
nothing with it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
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
#: Before the number of a job on the spool, where the jobs of copies have bare numbers.
_SPOOL_PREFIX: Final = "job-"
_UID: Final = re.compile(r"[0-9]{1,10}\Z")
#: What a client gets for a job that was killed, that exceeded its output limit, or of which nobody knows how it ended.
_NO_CODE: Final = 255


def exit_status(status: ExitStatus) -> int:
    """The one number of the protocol."""
    return status.code if status.code is not None else _NO_CODE


def spool_id(number: int) -> str:
    """The name on the spool of the job that clients know by this number."""
    return f"{_SPOOL_PREFIX}{number}"


def job_number(spool_id: str) -> int | None:
    """The reverse of `spool_id`; None: it is no job of a client."""
    number = spool_id.removeprefix(_SPOOL_PREFIX)
    is_one = spool_id.startswith(_SPOOL_PREFIX) and number.isascii() and number.isdecimal()
    return int(number) if is_one else None


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
            case [found, _, uid, _, _, home, _] if found == name and _UID.match(uid):
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
        job_id=spool_id(job_id),
        stdin=request.script,
    )


class WardenJob:
    """One job. ``info`` measures its container. ``drop``: called once its result is taken; forgets it, and does not fail."""

    def __init__(
        self,
        job_id: int,
        job: Job,
        saved: SavedJob,
        info: Callable[[], Awaitable[m.InfoResponse]],
        drop: Callable[[int, Job], Coroutine[Any, Any, None]],
    ) -> None:
        self.id = job_id
        self.saved = saved
        self._job = job
        self._info = info
        self._drop = drop
        self._linking = 0
        self._collecting: asyncio.Task[m.LinkResponse] | None = None

    @property
    def is_running(self) -> bool:
        return self._job.status is None

    @property
    def is_linked(self) -> bool:
        """Whether a client waits for its result."""
        return self._linking > 0

    def snapshot_keys(self) -> dict[str, Any]:
        """What Warden's snapshot has of a job."""
        keys: dict[str, Any] = {"discard_output": self.saved.discards_output}
        if self.saved.tag is not None:
            keys["log_tag"] = self.saved.tag.decode(errors="replace")
        if (status := self._job.status) is not None:
            keys["status"] = [exit_status(status), "", ""]
        return keys

    async def link(self) -> m.LinkResponse:
        """The result, once the job has ended. The job is forgotten then. If it cannot be read, the next link tries again."""
        self._linking += 1
        try:
            await self._job.wait()
            return await asyncio.shield(self._collected())
        finally:
            self._linking -= 1

    async def ended(self) -> None:
        """Returns when the job has ended and, if clients link it, when they have their result."""
        await self._job.wait()
        if self.is_linked:
            await asyncio.wait({self._collected()})

    def _collected(self) -> asyncio.Task[m.LinkResponse]:
        if self._collecting is None:
            self._collecting = asyncio.create_task(self._collect(), name=f"warden-job-{self.id}")
        return self._collecting

    async def _collect(self) -> m.LinkResponse:
        try:
            status = await self._job.wait()
            stdout, stderr = b"", b""
            if not self.saved.discards_output:
                stdout, stderr = await self._job.output("stdout"), await self._job.output("stderr")
            response = m.LinkResponse(exit_status(status), stdout, stderr, await self._info())
        except BaseException:
            self._collecting = None
            raise
        await self._drop(self.id, self._job)
        return response

    async def stream(self) -> AsyncGenerator[m.StreamResponse, None]:
        """All output from its beginning, and the end. The job stays if the client leaves before that."""
        if not self.saved.discards_output:
            async with aclosing(self._job.stream()) as chunks:
                async for chunk in chunks:
                    yield _streamed(chunk)
        status = await self._job.wait()
        yield m.StreamResponse(exit_status=exit_status(status), info=await self._info())
        if not self.is_linked and self._collecting is None:
            await finish(asyncio.create_task(self._drop(self.id, self._job)))


def _streamed(chunk: Chunk) -> m.StreamResponse:
    return m.StreamResponse(name=bytes_of(chunk.stream), data=chunk.data)
