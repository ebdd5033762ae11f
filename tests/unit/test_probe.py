"""Whether the disk can be written, also of one that does not answer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import structlog
from structlog.testing import CapturingLogger

from agent import probe
from agent.probe import WriteProbe

pytestmark = pytest.mark.unit


async def test_a_look_writes_and_leaves_nothing(tmp_path: Path) -> None:
    """What a killed agent left of one is no hindrance."""
    (tmp_path / ".probe.new").write_bytes(b"left")
    looks = WriteProbe(tmp_path, structlog.wrap_logger(CapturingLogger(), processors=[]))
    await looks.look()
    assert looks.is_writable
    assert list(tmp_path.iterdir()) == []


async def test_each_change_is_told_once(tmp_path: Path) -> None:
    """A directory that has gone takes no file; one that is back does."""
    kept = CapturingLogger()
    looks = WriteProbe(tmp_path / "base", structlog.wrap_logger(kept, processors=[]))
    for there in (False, False, True, True):
        if there:
            (tmp_path / "base").mkdir(exist_ok=True)
        await looks.look()
        assert looks.is_writable is there
    assert [call.method_name for call in kept.calls] == ["error", "info"]


async def test_a_disk_that_does_not_answer_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread waits for it, however often it is looked at."""
    answers, waiting = threading.Event(), list[Path]()

    def hang(directory: Path) -> None:
        waiting.append(directory)
        answers.wait(60)

    monkeypatch.setattr(probe, "write", hang)
    monkeypatch.setattr(probe, "PATIENCE_S", 0.05)
    looks = WriteProbe(tmp_path, structlog.wrap_logger(CapturingLogger(), processors=[]))
    for _ in range(3):
        await looks.look()
        assert not looks.is_writable
    assert waiting == [tmp_path]

    answers.set()
    monkeypatch.setattr(probe, "PATIENCE_S", 60)
    await looks.look()
    assert looks.is_writable


async def test_a_fault_of_the_probe_itself_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the supervisor, which logs it: a programming error is no broken disk."""

    def broken(_: Path) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(probe, "write", broken)
    looks = WriteProbe(tmp_path, structlog.wrap_logger(CapturingLogger(), processors=[]))
    with pytest.raises(ValueError, match="a fault of ours"):
        await looks.look()
    assert looks.is_writable


async def test_a_disk_that_was_always_there_is_not_announced(tmp_path: Path) -> None:
    """Only a change is."""
    kept = CapturingLogger()
    looks = WriteProbe(tmp_path, structlog.wrap_logger(kept, processors=[]))
    for _ in range(2):
        await looks.look()
    assert kept.calls == []
