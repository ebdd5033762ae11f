"""Snapshots: what is written comes back, what is strange is refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import old_release
import pytest

from container import snapshot
from container.snapshot import Holdings, LaterSnapshot, Phase, Snapshot, SnapshotError
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
        (b'{"version": 0}', "version: expected 1, got 0"),
        (b'{"version": 2}', "version: expected at most 1, got 2"),
        (b"[" * 100_000, "."),
        (b'{"version": 1}', "missing required field"),
        (snapshot.encode(FULL).replace(b'"handle"', b'"handel"'), "missing required"),
        (snapshot.encode(FULL).replace(b'"pid": 42', b'"pid": "42"'), "pid"),
        (snapshot.encode(FULL).replace(b"67108864", b"-1"), "positive"),
        (snapshot.encode(FULL)[:-40], "."),
    ],
)
def test_a_strange_file_is_refused(data: bytes, message: str) -> None:
    """Half a snapshot is none: the container is removed whole instead of being guessed at."""
    with pytest.raises(SnapshotError, match=message):
        snapshot.decode(data)


def test_the_snapshots_of_the_first_release_are_taken() -> None:
    """What it wrote, byte for byte."""
    found = snapshot.decode((old_release.FIXTURES / "snapshot.instance.json").read_bytes())

    assert (found.handle, found.phase, found.network) == ("1j14f58l7j5", Phase.MADE, "10.254.0.0/30")
    assert found.ports == (PortMapping(Protocol.TCP, 61000, 61000),)
    assert found.limits.disk_bytes == 1073682709
    assert len(found.egress) == 5
    assert snapshot.decode((old_release.FIXTURES / "snapshot.staging.json").read_bytes()).egress != ()


def test_a_snapshot_of_another_release_is_taken_as_far_as_it_is_known() -> None:
    """What it lacks has a default, what it has beyond is ignored."""
    fields = json.loads(snapshot.encode(FULL))
    for added in ("ports", "egress", "properties", "home", "stopped", "events"):
        del fields[added]
    fields["limits"]["gpu"] = 1

    found = snapshot.decode(json.dumps(fields | {"colour": "red"}).encode())

    assert found == msgspec.structs.replace(FULL, ports=(), egress=(), properties={}, home=False, events=())


def test_of_a_later_version_is_read_what_it_holds_of_the_host() -> None:
    """So that nobody else gets the same; a field that has become another kind of thing hides no other."""
    fields = json.loads(snapshot.encode(FULL)) | {"version": 2, "ports": {"new": 1}, "phase": "asleep"}
    data = json.dumps(fields).encode()

    with pytest.raises(LaterSnapshot):
        snapshot.decode(data)
    assert snapshot.decode_holdings(data) == Holdings(
        link_id=FULL.link_id,
        ids_first=FULL.ids_first,
        network=FULL.network,
        egress=FULL.egress,
        limits=FULL.limits,
    )
    assert snapshot.decode_holdings(b"[") == Holdings()


def test_the_callers_record_lies_beside(tmp_path: Path) -> None:
    """Replaced whole, 0600; none is none."""
    assert snapshot.read_record(tmp_path) is None
    snapshot.write_record(tmp_path, b"one")
    snapshot.write_record(tmp_path, b"two")

    assert snapshot.read_record(tmp_path) == b"two"
    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [("record", 0o600)]


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    """A directory without a snapshot was killed before anything was made."""
    with pytest.raises(SnapshotError):
        snapshot.read(tmp_path)


def test_a_process_has_a_start_and_a_dead_one_none() -> None:
    """The start tells a process from a later one with its number."""
    assert snapshot.start_ticks(1) >= 0
    with pytest.raises(ProcessLookupError):
        snapshot.start_ticks(2**22 + 1)
