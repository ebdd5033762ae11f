"""A second implementation of the depot (`agent/depot.py`), in memory, to test a whole agent without root.

Containers run no programs; a few are imitated. The start command ``serve`` accepts connections at the published port until it
is stopped, ``crash N`` writes a line and ends with status N. The buildpack accepts every package.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from agent.config import Settings
from agent.droplets.archive import Bounds
from agent.droplets.unpacker import Feeding, Unpacked, Unpacker
from agent.factories import Factories
from agent.host import transfers_for
from agent.logs import Log
from container import (
    Chunk,
    ContainerSpec,
    ContainerState,
    EventKind,
    Events,
    ExitStatus,
    FileEntry,
    Info,
    JobSpec,
    Pipe,
    PortMapping,
    Recovery,
    RunResult,
    UnknownHandle,
    WrongState,
)

T = TypeVar("T")
HOME = "/home/vcap"
FIRST_PORT = 61001


class MemoryJob:
    """A program whose output is in memory. It ends when ``end`` is called."""

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self._sizes = {"stdout": 0, "stderr": 0}
        self._changed = asyncio.Condition()
        self.status: ExitStatus | None = None
        self.work: asyncio.Task[None] | None = None

    async def write(self, data: bytes, stream: str = "stdout") -> None:
        async with self._changed:
            self._chunks.append(Chunk(stream, self._sizes[stream], data, 0))
            self._sizes[stream] += len(data)
            self._changed.notify_all()

    async def end(self, status: ExitStatus) -> None:
        async with self._changed:
            self.status = self.status or status
            self._changed.notify_all()

    async def wait(self) -> ExitStatus:
        async with self._changed:
            await self._changed.wait_for(lambda: self.status is not None)
        assert self.status is not None
        return self.status

    def size_bytes(self, stream: str) -> int:
        return self._sizes[stream]

    async def stream(self, stream: str | None, *, follow: bool = True) -> AsyncIterator[Chunk]:
        at = 0
        while True:
            while at < len(self._chunks):
                if stream in (None, self._chunks[at].stream):
                    yield self._chunks[at]
                at += 1
            if self.status is not None or not follow:
                return
            async with self._changed:
                while at == len(self._chunks) and self.status is None:
                    await self._changed.wait()


class MemoryPipedJob:
    """A program that writes ``output`` to its standard output, reads all of its standard input, and ends with status 0."""

    def __init__(self, names: tuple[str, ...], output: bytes) -> None:
        self._over = asyncio.Event()
        self._pipes = {name: Pipe(os.getuid(), self._over, to_job=name == "stdin") for name in names}
        self._output = output

    def pipe(self, name: str) -> Pipe:
        return self._pipes[name]

    async def run(self, moving: Coroutine[Any, Any, T]) -> tuple[T, ExitStatus, str]:
        async def program() -> None:
            if "stdout" in self._pipes:
                await asyncio.to_thread(_write_all, self._pipes["stdout"].theirs, self._output)
            if "stdin" in self._pipes:
                await asyncio.to_thread(_drain, self._pipes["stdin"].theirs)
            for pipe in self._pipes.values():
                pipe.close_theirs()

        moved, _ = await asyncio.gather(moving, program())
        self._over.set()
        return moved, ExitStatus(code=0), ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes.values():
            pipe.close()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _drain(fd: int) -> None:
    while os.read(fd, 1 << 16):
        pass


class MemoryContainer:
    def __init__(self, handle: str, spec: ContainerSpec, ports: tuple[PortMapping, ...], at: str) -> None:
        self.handle, self.spec, self.ports = handle, spec, ports
        self.pid = os.getpid()
        self.socket_path = Path("/nonexistent")
        self.properties: Mapping[str, str] = dict(spec.properties)
        self.record: bytes | None = None
        self.jobs: dict[str, MemoryJob] = {}
        self.events = Events()
        self.broken = ""
        self.is_gone = False
        self._at = at
        self._files: dict[str, bytes] = {}

    def keep_record(self, record: bytes) -> None:
        self._check()
        self.record = record

    def _check(self) -> None:
        if self.is_gone:
            raise WrongState(f"{self.handle}: is being destroyed")

    # Programs.

    async def spawn(self, spec: JobSpec) -> MemoryJob:
        self._check()
        job = MemoryJob()
        self.jobs[spec.job_id or f"job-{len(self.jobs)}"] = job
        job.work = asyncio.create_task(self._run(job, spec), name=f"memory-{self.handle}")
        return job

    async def _run(self, job: MemoryJob, spec: JobSpec) -> None:
        if spec.argv[0].endswith("/bin/compile"):
            await job.write(b"-----> Nothing to build\n")
            await job.end(ExitStatus(code=0))
            return
        match spec.argv[-1].split():
            case ["serve"]:
                await job.write(b"serving\n")
                port = self.ports[0].host_port
                server = await asyncio.start_server(lambda _, writer: writer.close(), self._at, port)
                async with server:
                    await job.wait()
            case ["crash", number]:
                await job.write(b"about to crash\n")
                await job.end(ExitStatus(code=int(number)))
            case other:
                await job.write(f"unknown program: {other}\n".encode(), "stderr")
                await job.end(ExitStatus(code=127))

    async def run(self, spec: JobSpec) -> RunResult:
        self._check()
        return RunResult(ExitStatus(code=0), b"", b"")

    async def spawn_piped(self, spec: JobSpec, *names: str) -> MemoryPipedJob:
        self._check()
        match spec.argv[0].rsplit("/", 1)[-1]:
            case "detect":
                output = b"Memory\n"
            case "release":
                output = b"default_process_types: {web: serve}\n"
            case "tar":
                output = self._droplet()
            case _:
                output = b""
        return MemoryPipedJob(names, output)

    def _droplet(self) -> bytes:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for path, text in sorted(self._files.items()):
                if path.startswith(f"{HOME}/"):
                    member = tarfile.TarInfo(f".{path.removeprefix(HOME)}")
                    member.size = len(text)
                    tar.addfile(member, io.BytesIO(text))
        return data.getvalue()

    async def end_jobs(self, grace_s: float) -> None:
        await self.stop(grace_s)

    async def stop(self, grace_s: float) -> None:
        for job in self.jobs.values():
            await job.end(ExitStatus(signal=15))
            if job.work is not None:
                await job.work

    # Files and figures.

    async def read_file(self, path: str, max_bytes: int, offset: int = 0) -> bytes:
        self._check()
        if path in self._files:
            return self._files[path][offset : offset + max_bytes]
        for layer in self.spec.home_layers:
            if path.startswith(f"{HOME}/") and (found := layer / path.removeprefix(f"{HOME}/")).is_file():
                return found.read_bytes()[offset : offset + max_bytes]
        raise FileNotFoundError(2, "No such file or directory", path)

    async def write_files(self, *entries: FileEntry) -> None:
        self._check()
        self._files |= {entry.path: entry.data for entry in entries}

    async def info(self) -> Info:
        self._check()
        return Info(
            state=ContainerState.ACTIVE,
            events=self.events.kinds,
            job_ids=tuple(self.jobs),
            memory_bytes=1 << 20,
            memory_limit_bytes=None,
            memory_stat={},
            oom_kills=0,
            cpu_ns=1000,
            cpu_user_ns=600,
            cpu_system_ns=400,
            pids=1,
            disk_bytes=4096,
            disk_inodes=1,
        )

    def oom_kills(self) -> int:
        return int(EventKind.OUT_OF_MEMORY in self.events.kinds)


class MemoryDepot:
    """``at``: the address at which ports are published."""

    def __init__(self, at: str) -> None:
        self._at = at
        self._held: dict[str, MemoryContainer] = {}
        self._made = 0

    async def recover(self) -> Recovery:
        return Recovery((), ())

    def find(self, handle: str) -> MemoryContainer:
        try:
            return self._held[handle]
        except KeyError:
            raise UnknownHandle(handle) from None

    def handles(self) -> tuple[str, ...]:
        return tuple(self._held)

    async def create(self, spec: ContainerSpec, *, record: bytes | None = None) -> MemoryContainer:
        self._made += 1
        ports = tuple(PortMapping(host_port=FIRST_PORT + self._made, container_port=8080) for _ in spec.ports)
        made = MemoryContainer(f"memory{self._made}", spec, ports, self._at)
        made.record = record
        self._held[made.handle] = made
        return made

    async def destroy(self, handle: str, grace_s: float = 0) -> None:
        if (container := self._held.get(handle)) is not None:
            await container.stop(grace_s)
            container.is_gone = True
            container.events.close()
            del self._held[handle]

    async def close(self, *, remove_tables: bool = False) -> None:
        for handle in self.handles():
            await self.destroy(handle)


class _PlainFeeding(Feeding):
    def __init__(self, target: Path) -> None:
        self._target = target
        self._data = b""

    async def feed(self, data: bytes) -> bool:
        self._data += data
        return True

    async def finish(self) -> Unpacked:
        with tarfile.open(fileobj=io.BytesIO(self._data)) as tar:
            members = tar.getmembers()
            tar.extractall(self._target)
        return Unpacked(len(members), sum(one.size for one in members))


class PlainUnpacker(Unpacker):
    """Unpacks without the jail, which needs root. Only for archives that the test has made itself."""

    def make_root(self, target: Path) -> None:
        target.mkdir(mode=0o755)

    @asynccontextmanager
    async def feeding_tar(self, target: Path, bounds: Bounds) -> AsyncIterator[Feeding]:
        self.make_root(target)
        yield _PlainFeeding(target)

    async def unpack_zip(self, archive: Path, target: Path, bounds: Bounds) -> Unpacked:
        self.make_root(target)
        try:
            with zipfile.ZipFile(archive) as found:
                found.extractall(target)
                return Unpacked(len(found.namelist()), sum(one.file_size for one in found.infolist()))
        except BaseException:
            shutil.rmtree(target)
            raise


def in_memory(at: str) -> Factories:
    async def open_depot(settings: Settings, log: Log, port_rests: Callable[[int], bool]) -> MemoryDepot:
        return MemoryDepot(at)

    return Factories(open_depot, transfers_for, lambda _: PlainUnpacker(low_water_bytes=0))
