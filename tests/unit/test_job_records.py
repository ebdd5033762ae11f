"""Records of jobs, the words of a spawn, readers of a file that loses its head, removal of hostile trees."""

from __future__ import annotations

import ctypes
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from container import overlay
from container.jobs.job import spawn_keys
from container.jobs.records import ExitStatus, JobRecord, parse_record
from container.jobs.spool import SpoolReader
from container.spec import DEFAULT_PATH, JobSpec, Output, Past, User

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("data", "record"),
    [
        (b"", JobRecord()),
        (b"exit 3\n", JobRecord(ExitStatus(code=3))),
        (b"signal 9\nend\n", JobRecord(ExitStatus(signal=9), ended=True)),
        (b"overran\nend\n", JobRecord(ExitStatus(signal=9, overran=True), ended=True)),
        (b"exit", JobRecord()),
        (b"exit 0\nlost stdout 512\nend\n", JobRecord(ExitStatus(code=0), True, {"stdout": 512})),
        (b"news 1\nexit 1\nexit 2\n", JobRecord(ExitStatus(code=1))),
        (b"exit x\n\xff\xfe\n", JobRecord()),
    ],
)
def test_what_a_record_says(data: bytes, record: JobRecord) -> None:
    """Unfinished and unknown lines are ignored; the first end counts."""
    assert parse_record(data) == record


def test_the_bus_has_one_number_for_an_end() -> None:
    """255 for a signal or an overrun, -1 for what nobody knows."""
    ends = [
        ExitStatus(code=7),
        ExitStatus(signal=15),
        ExitStatus(signal=9, overran=True),
        ExitStatus(lost=True),
    ]
    assert [end.number for end in ends] == [7, 255, 255, -1]


def test_the_words_of_a_spawn() -> None:
    """Each key with exactly one value."""
    spec = JobSpec(
        ("sh", "-c", "x"),
        env=("A=1",),
        user=User.ROOT,
        cwd="/",
        rlimits={"nofile": 256},
        output=Output(1, Past.KILL),
    )
    assert spawn_keys(spec, "spool", ("stdout", "record")) == [
        ("arg", "sh"), ("arg", "-c"), ("arg", "x"), ("env", "A=1"), ("env", f"PATH={DEFAULT_PATH}"),
        ("uid", "0"), ("gid", "0"), ("cwd", "/"),
        ("umask", "22"), ("rlimit", "nofile:256:256"), ("io", "spool"), ("fd", "stdout"), ("fd", "record"),
        ("limit", "1"), ("over", "kill"),
    ]  # fmt: skip


def test_a_reader_is_told_of_what_was_dropped(tmp_path: Path) -> None:
    """A hole at the head: the chunk begins at the first byte that is left and names the gap."""
    from container.linux.calls import libc

    path = tmp_path / "spool"
    path.write_bytes(b"a" * 65536 + b"b" * 10)
    fd = os.open(path, os.O_RDWR)
    assert libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(65536)) == 0
    os.close(fd)

    with ExitStack() as opened:
        reader = SpoolReader(opened, path, "stdout", 100)
        chunk = reader.read()
        assert chunk is not None
        assert (chunk.offset, chunk.data, chunk.gap_bytes) == (65536, b"b" * 10, 65436)
        assert reader.read() is None
        with path.open("ab") as file:
            file.write(b"c")
        chunk = reader.read()
        assert chunk is not None
        assert (chunk.offset, chunk.data, chunk.gap_bytes) == (65546, b"c", 0)


def test_a_hostile_tree_is_removed_and_nothing_behind_its_links(tmp_path: Path) -> None:
    """Links are not followed, and a depth of thousands is no matter."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    (tree / ".lifted-0").mkdir()
    (tree / ".lifted-0" / "file").write_text("x")
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)

    overlay.remove_tree(tree)
    overlay.remove_tree(tree)

    assert not tree.exists()
    assert (outside / "kept").read_text() == "x"
