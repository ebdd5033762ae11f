"""The files of the agent's memory: who may read them, and what is taken from them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.memory.records import UnreadableRecord, decode_instance
from agent.memory.store import INSTANCES, RecordStore

pytestmark = pytest.mark.unit


def test_the_files_are_the_agents_alone(tmp_path: Path) -> None:
    """Credentials are in them: also a directory that has to be made anew is closed to others."""
    store = RecordStore(tmp_path / "db", tmp_path / "agent.id")
    store.write(INSTANCES, "one", b"{}")
    assert (tmp_path / "db" / INSTANCES).stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "db" / INSTANCES / "one.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "is_taken"), [("a" * 64, True), ("a" * 65, False), ("a\x1b", False), ("", False)]
)
def test_an_agent_id_that_is_none_is_not_taken(tmp_path: Path, text: str, is_taken: bool) -> None:
    """It goes into subjects and messages: 64 printable characters at most, else a new one is made."""
    (tmp_path / "agent.id").write_text(f"{text}\n")
    store = RecordStore(tmp_path / "db", tmp_path / "agent.id")
    assert (store._read_id() == text) is is_taken
    assert store._read_id() in (text, None)


def test_reading_a_deep_record_leaves_the_interpreter_as_it_was() -> None:
    """A former release's record may be deeper than the limit; the limit is back afterwards."""
    before = sys.getrecursionlimit()
    with pytest.raises(UnreadableRecord):
        decode_instance(b"[" * 5000)
    assert sys.getrecursionlimit() == before
