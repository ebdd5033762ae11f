"""What the agent remembers over a restart: its id, its instances, the stagings in hand. Atomic, versioned, strict.

One file, `db/agent.json`, mode 0600 (a start message holds credentials), written beside and renamed. A file that is
damaged or of a later version is moved aside and said: the agent then starts empty, and the health manager fills the gap.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from agent.bus.messages import StartMessage
from agent.instances.instance import Exit, Instance, State

FORMAT = 1


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
    )


def load_instance(saved: SavedInstance) -> Instance:
    """In state BORN; what becomes of it depends on what is found of its container."""
    return Instance(
        id=saved.id,
        private_id=saved.private_id,
        message=saved.message,
        version=saved.version,
        uris=saved.uris,
        state_since_s=saved.state_since_s,
        started_at_s=saved.started_at_s,
        handle=saved.handle,
        healthy=saved.healthy,
        exit=Exit(saved.exit.status, saved.exit.description, saved.exit.signal),
        crashed_at_s=saved.crashed_at_s,
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
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, msgspec.json.encode(memory))
    finally:
        os.close(fd)
    new.rename(path)
