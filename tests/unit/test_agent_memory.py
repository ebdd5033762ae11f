"""The agent's memory: what is remembered comes back, a damaged one is put aside, and writing it never gets in anybody's way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import structlog

from agent import snapshot
from agent.bus.messages import AppLimits, StartMessage
from agent.instances.instance import Exit, Instance, State
from agent.snapshot import Memory, SavedStaging, Saver, SnapshotDamaged
from container import PortMapping

pytestmark = pytest.mark.unit

LOG = structlog.get_logger()


def crashed() -> Instance:
    message = StartMessage(
        "app", "v1", "name", 2, AppLimits(16, 32, 64), (), "default", uris=("a.example.com",)
    )
    return Instance(
        id="i",
        private_id="p",
        message=message,
        version="v2",
        uris=("b.example.com",),
        state=State.CRASHED,
        state_since_s=5.5,
        started_at_s=4.5,
        handle="h",
        port=PortMapping(host_port=61001, container_port=8080),
        exit=Exit(255, "app instance exited", 9),
        crashed_at_s=5,
        healthy=True,
    )


def test_what_is_remembered_of_an_instance_comes_back(tmp_path: Path) -> None:
    """All but its state, which depends on what is found of its container."""
    path = tmp_path / "agent.json"
    instance = crashed()
    memory = Memory("me", (snapshot.save_instance(instance),), (SavedStaging("t", "app", "inbox"),))

    snapshot.write(path, memory)

    assert snapshot.read(path) == memory
    (saved,) = memory.instances
    back = snapshot.load_instance(saved)
    assert back.state is State.BORN
    assert snapshot.save_instance(back) == msgspec.structs.replace(saved, state=State.BORN)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b'{"agent_id": 1}', b'{"agent_id": "me", "format": 2}']
)
def test_a_damaged_memory_is_put_aside(tmp_path: Path, data: bytes) -> None:
    """The agent starts without it; somebody may still want to look."""
    path = tmp_path / "agent.json"
    path.write_bytes(data)

    with pytest.raises(SnapshotDamaged, match=r"agent\.damaged"):
        snapshot.read(path)

    assert snapshot.read(path) is None
    assert (tmp_path / "agent.damaged").read_bytes() == data


def test_a_write_that_fails_leaves_the_old_memory(tmp_path: Path) -> None:
    """Half a memory would be none."""
    path = tmp_path / "agent.json"
    snapshot.write(path, Memory("me"))
    (tmp_path / "agent.new").symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space"):
        snapshot.write(path, Memory("me", stagings=(SavedStaging("t", "app", ""),)))

    assert snapshot.read(path) == Memory("me")


@contextlib.asynccontextmanager
async def saving(saver: Saver) -> AsyncIterator[None]:
    task = asyncio.create_task(saver.run(), name="saver")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_last_of_many_changes_is_what_is_on_disk(tmp_path: Path) -> None:
    """A change during a write is not lost, and changes in one turn are one write."""
    path, composed = tmp_path / "agent.json", list[Memory]()

    def compose() -> Memory:
        composed.append(Memory(f"{len(composed)}"))
        return composed[-1]

    saver = Saver(path, compose, LOG)
    async with saving(saver):
        for _ in range(100):
            saver.changed()
        assert await saver.save()
        saver.changed()
        assert await saver.save()

    assert snapshot.read(path) == composed[-1]
    assert len(composed) <= 4


async def test_a_memory_that_could_not_be_written_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is a state, not an end."""
    monkeypatch.setattr(snapshot, "RETRY_S", 0.01)
    path, asked = tmp_path / "missing" / "agent.json", asyncio.Event()

    def compose() -> Memory:
        asked.set()
        return Memory("me")

    saver = Saver(path, compose, LOG)
    async with saving(saver):
        saver.changed()
        await asked.wait()
        path.parent.mkdir()
        async with asyncio.timeout(10):
            while not path.exists():
                await asyncio.sleep(0.01)

    assert snapshot.read(path) == Memory("me")
