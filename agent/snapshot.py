"""What the agent remembers over a restart: its id, its instances, the stagings in hand. Atomic, versioned, strict.

One file, `db/agent.json`, mode 0600 (a start message holds credentials), written beside and renamed. A file that is
damaged or of a later version is moved aside and said: the agent then starts empty, and the health manager fills the gap.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.bus.messages import StartMessage
from agent.bus.routes import routes_of
from agent.instances.instance import Exit, Instance, State
from agent.logs import Log
from container import PortMapping

FORMAT = 1
#: After a write that failed (a full disk), when to try again.
RETRY_S = 5.0


class SavedExit(msgspec.Struct, frozen=True):
    status: int
    description: str
    signal: int | None = None


class SavedInstance(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    private_id: str
    message: StartMessage
    version: str
    uris: tuple[str, ...]
    state: State
    state_since_s: float
    started_at_s: float
    handle: str | None
    healthy: bool
    exit: SavedExit
    crashed_at_s: int
    #: Of the host, and inside; for routes that must be taken back though the container is gone.
    ports: tuple[int, int] | None = None


class SavedStaging(msgspec.Struct, frozen=True):
    task_id: str
    app_id: str
    reply_to: str


class Memory(msgspec.Struct, frozen=True):
    agent_id: str
    instances: tuple[SavedInstance, ...] = ()
    stagings: tuple[SavedStaging, ...] = ()
    format: int = FORMAT


class SnapshotDamaged(RuntimeError):
    """The file could not be used; it has been moved to the path that the text names."""


def save_instance(instance: Instance) -> SavedInstance:
    return SavedInstance(
        id=instance.id,
        private_id=instance.private_id,
        message=instance.message,
        version=instance.version,
        uris=instance.uris,
        state=instance.state,
        state_since_s=instance.state_since_s,
        started_at_s=instance.started_at_s,
        handle=instance.handle,
        healthy=instance.healthy,
        exit=SavedExit(instance.exit.status, instance.exit.description, instance.exit.signal),
        crashed_at_s=instance.crashed_at_s,
        ports=_ports(instance.port),
    )


def _ports(port: PortMapping | None) -> tuple[int, int] | None:
    if port is None or port.host_port is None or port.container_port is None:
        return None
    return port.host_port, port.container_port


def load_instance(saved: SavedInstance) -> Instance:
    """In state BORN; what becomes of it depends on what is found of its container."""
    return Instance(
        id=saved.id,
        private_id=saved.private_id,
        message=saved.message,
        version=saved.version,
        uris=routes_of(saved.uris),  # an older agent kept them as they came
        state_since_s=saved.state_since_s,
        started_at_s=saved.started_at_s,
        handle=saved.handle,
        healthy=saved.healthy,
        routed=saved.healthy and bool(saved.uris),
        exit=Exit(saved.exit.status, saved.exit.description, saved.exit.signal),
        crashed_at_s=saved.crashed_at_s,
        port=PortMapping(host_port=saved.ports[0], container_port=saved.ports[1]) if saved.ports else None,
    )


def read(path: Path) -> Memory | None:
    """None: there is none yet. SnapshotDamaged: see there."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        memory = msgspec.json.decode(data, type=Memory)
        if memory.format != FORMAT:
            raise ValueError(f"format {memory.format}, this agent reads {FORMAT}")
    except (msgspec.MsgspecError, ValueError) as e:
        aside = path.with_suffix(".damaged")
        path.rename(aside)
        raise SnapshotDamaged(f"{e}; moved to {aside}") from e
    return memory


def write(path: Path, memory: Memory) -> None:
    """OSError: the old one stands as it was. Blocking.

    Not synced to the disk: that would widen the time in which a killed agent forgets, and a host that crashes has no containers
    left to remember.
    """
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(memory))  # a full disk raises: half a memory is never renamed
    new.rename(path)


class Saver:
    """Keeps the file up to date, in a thread: one write at a time, and what changes meanwhile goes into the next."""

    def __init__(self, path: Path, compose: Callable[[], Memory], log: Log) -> None:
        self._path = path
        self._compose = compose
        self._log = log
        self._due = asyncio.Event()
        self._writing = asyncio.Lock()

    def changed(self) -> None:
        """Something that is remembered has changed; however often this is said in one turn, it is one write."""
        self._due.set()

    async def run(self) -> None:
        """For a TaskGroup: for ever."""
        while True:
            await self._due.wait()
            if not await self.save():
                await asyncio.sleep(RETRY_S)
                self._due.set()

    async def save(self) -> bool:
        """What is known now is on disk when this returns; False: it could not be written, which is said."""
        async with self._writing:
            self._due.clear()
            try:
                await asyncio.to_thread(write, self._path, self._compose())
            except OSError as e:
                self._log.error("snapshot_not_written_retrying", error=str(e))
                return False
        return True
