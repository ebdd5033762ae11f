"""The part of the container manager that the agent uses, as protocols.

`container.Depot` fulfils them on a real host. A depot in memory (tests/depot_in_memory.py) fulfils them without root, so
that a whole agent, or a fleet of them, runs in a test. The values (specs, statuses, chunks, events) are the container
manager's own, and so are the errors: what `container/` documents for a method holds here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from agent.config import Settings
from agent.logs import Log
from container import (
    Chunk,
    ContainerSpec,
    Events,
    ExitStatus,
    FileEntry,
    Info,
    JobSpec,
    Pipe,
    PortMapping,
    Recovery,
    RunResult,
)

T = TypeVar("T")


class AgentJob(Protocol):
    """A job whose output is kept; see `container.Job`."""

    @property
    def status(self) -> ExitStatus | None: ...

    async def wait(self) -> ExitStatus: ...

    def size_bytes(self, stream: str) -> int: ...

    def stream(self, stream: str | None, *, follow: bool = True) -> AsyncIterator[Chunk]: ...


class AgentPipedJob(Protocol):
    """A job whose streams are pipes of the agent's; see `container.PipedJob`."""

    def pipe(self, name: str) -> Pipe: ...

    async def run(self, moving: Coroutine[Any, Any, T]) -> tuple[T, ExitStatus, str]: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class AgentContainer(Protocol):
    """A container; see `container.Container`."""

    @property
    def handle(self) -> str: ...

    @property
    def pid(self) -> int: ...

    @property
    def socket_path(self) -> Path: ...

    @property
    def properties(self) -> Mapping[str, str]: ...

    @property
    def ports(self) -> tuple[PortMapping, ...]: ...

    @property
    def record(self) -> bytes | None: ...

    @property
    def jobs(self) -> Mapping[str, AgentJob]: ...

    @property
    def events(self) -> Events: ...

    @property
    def broken(self) -> str: ...

    def keep_record(self, record: bytes) -> None: ...

    async def spawn(self, spec: JobSpec) -> AgentJob: ...

    async def spawn_piped(self, spec: JobSpec, *names: str) -> AgentPipedJob: ...

    async def run(self, spec: JobSpec) -> RunResult: ...

    async def end_jobs(self, grace_s: float) -> None: ...

    async def stop(self, grace_s: float) -> None: ...

    async def info(self) -> Info: ...

    def oom_kills(self) -> int: ...

    async def read_file(self, path: str, max_bytes: int, offset: int = 0) -> bytes: ...

    async def write_files(self, *entries: FileEntry) -> None: ...


class AgentDepot(Protocol):
    """All containers of a host; see `container.Depot`."""

    async def recover(self) -> Recovery: ...

    def find(self, handle: str) -> AgentContainer: ...

    def handles(self) -> tuple[str, ...]: ...

    async def create(self, spec: ContainerSpec, *, record: bytes | None = None) -> AgentContainer: ...

    async def destroy(self, handle: str, grace_s: float = 0) -> None: ...

    async def close(self, *, remove_tables: bool = False) -> None: ...


OpenDepot = Callable[[Settings, Log, Callable[[int], bool]], Awaitable[AgentDepot]]
"""Opens the host's depot. The last argument is asked before a host port is given out; True: not this one yet."""
