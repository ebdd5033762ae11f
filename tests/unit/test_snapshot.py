"""Snapshots: what is written comes back, what is strange is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from container import snapshot
from container.snapshot import Phase, Snapshot, SnapshotError
from container.spec import EgressRule, Limits, PortMapping, PortRange, Protocol

pytestmark = pytest.mark.unit

FULL = Snapshot(
    phase=Phase.MADE,
    boot_id="b",
    handle="h",
    link_id="0123456789a",
    ids_first=1_000_000_000,
    network="10.254.0.0/30",
    hostname="web",
    limits=Limits(memory_bytes=64 << 20, pids=100),
    ports=(PortMapping(Protocol.TCP, 61001, 8080),),
    egress=(EgressRule(Protocol.TCP, ("10.0.0.0/8",), (PortRange(80, 443),), log=True),),
    properties={"app": "x"},
    pid=42,
    pid_start_ticks=7,
    home=True,
    events=("out of memory",),
)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    """And no temporary file stays."""
    snapshot.write(tmp_path, FULL)

    assert snapshot.read(tmp_path) == FULL
    assert [path.name for path in tmp_path.iterdir()] == [snapshot.FILE_NAME]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "."),
        (b"{", "."),
        (b"\xff\xfe", "."),
        (b"[]", "."),
        (b'{"version": 2}', "version: expected 1, got 2"),
        (b'{"version": 1}', "missing required field"),
        (snapshot.encode(FULL).replace(b'"handle"', b'"handel"'), "unknown field|missing required"),
        (snapshot.encode(FULL).replace(b'"pid": 42', b'"pid": "42"'), "pid"),
        (snapshot.encode(FULL).replace(b"67108864", b"-1"), "positive"),
        (snapshot.encode(FULL)[:-40], "."),
    ],
)
def test_a_strange_file_is_refused(data: bytes, message: str) -> None:
    """Half a snapshot is none: the container is removed whole instead of being guessed at."""
    with pytest.raises(SnapshotError, match=message):
        snapshot.decode(data)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    """A directory without a snapshot was killed before anything was made."""
    with pytest.raises(SnapshotError):
        snapshot.read(tmp_path)


def test_a_process_has_a_start_and_a_dead_one_none() -> None:
    """The start tells a process from a later one with its number."""
    assert snapshot.start_ticks(1) >= 0
    with pytest.raises(ProcessLookupError):
        snapshot.start_ticks(2**22 + 1)
