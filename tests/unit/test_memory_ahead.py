"""The files of the agent's memory are written ahead of what depends on them, and never hold anybody up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from agent.memory import ahead
from agent.memory.ahead import Memory
from agent.memory.store import RecordStore

pytestmark = pytest.mark.unit

LOG = structlog.get_logger()


def db(tmp_path: Path) -> set[str]:
    return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "db", tmp_path / "agent.id")


@contextlib.asynccontextmanager
async def running(memory: Memory) -> AsyncIterator[None]:
    task = asyncio.create_task(memory.run(), name="memory")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        memory.close()


async def test_a_generation_is_written_when_it_is_said_to_be(store: RecordStore, tmp_path: Path) -> None:
    """And changes of one turn are one write, of what is true then."""
    memory, composed = Memory(store, LOG), list[int]()

    def compose() -> bytes:
        composed.append(len(composed))
        return b"%d" % composed[-1]

    async with running(memory):
        for _ in range(100):
            memory.keep("s", "n", compose)
        assert not (tmp_path / "db/s/n.json").exists()
        await memory.wait_written(memory.generation)
        assert (tmp_path / "db/s/n.json").read_bytes() == b"0"
        memory.keep("s", "n", lambda: None)
        await memory.wait_written(memory.generation)

    assert not (tmp_path / "db/s/n.json").exists()
    assert composed == [0]


async def test_the_copy_is_made_of_what_was_written(store: RecordStore) -> None:
    """And one that fails costs the record nothing."""
    memory, copies = Memory(store, LOG), list[bytes]()

    def fails(data: bytes) -> None:
        raise OSError("no copy")

    async with running(memory):
        memory.keep("s", "one", lambda: b"1", after=copies.append)
        memory.keep("s", "two", lambda: b"2", after=fails)
        await memory.wait_written(memory.generation)

    assert copies == [b"1"]


async def test_a_record_that_cannot_be_made_costs_itself_only(store: RecordStore, tmp_path: Path) -> None:
    """An error of ours in one instance must not silence the agent."""
    memory = Memory(store, LOG)

    def broken() -> bytes:
        raise RecursionError

    async with running(memory):
        memory.keep("s", "bad", broken)
        memory.keep("s", "good", lambda: b"1")
        await memory.wait_written(memory.generation)

    assert db(tmp_path) == {"db/s/good.json"}


async def test_a_record_that_cannot_be_written_holds_nobody_up_and_is_written_later(
    store: RecordStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is a state, not an end: one try, then what was waiting goes on; new records are tried at once."""
    monkeypatch.setattr(ahead, "RETRY_S", 0.05)
    (tmp_path / "db").write_text("in the way")
    memory = Memory(store, LOG)
    async with running(memory):
        memory.keep("s", "one", lambda: b"1")
        await asyncio.wait_for(memory.wait_written(memory.generation), 10)
        memory.keep("s", "two", lambda: b"2")
        await asyncio.wait_for(memory.wait_written(memory.generation), 10)
        (tmp_path / "db").unlink()
        async with asyncio.timeout(10):
            while db(tmp_path) != {"db/s/one.json", "db/s/two.json"}:
                await asyncio.sleep(0.01)


async def test_a_disk_that_does_not_answer_holds_nobody_up(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers take a silent agent for dead, whatever its disk does."""
    monkeypatch.setattr(ahead, "PATIENCE_S", 0.05)
    memory = Memory(store, LOG)  # nobody writes
    memory.keep("s", "one", lambda: b"1")

    await asyncio.wait_for(memory.wait_written(memory.generation), 10)

    memory.close()
