"""Output: complete, read late, limited in three ways, lost on a full disk; and a job that reads its own pipe."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, Box, running, until_record

pytestmark = pytest.mark.kernel
MIB = 1 << 20


@pytest.fixture(params=BUILDS)
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    yield from running(tmp_path, request.param)


def test_a_mebibyte_is_whole_for_a_late_reader(box: Box) -> None:
    """Everything that was in the pipe at the exit is in the file when the record says exit."""
    ended, out, _ = box.run("job", "/bin/sh", "-c", "yes 0123456789abcde | head -c 1048576; kill -9 $$")
    assert ended == ["ok", "signal", "9"]
    assert out == "0123456789abcde\n" * (MIB // 16)


def test_a_holder_of_the_pipe_goes_on_after_the_exit(box: Box) -> None:
    """The record says exit with the first process and end with the last holder of the pipe."""
    box.run("job", "/bin/sh", "-c", "(while [ ! -e /go ]; do sleep 0.01; done; echo late) & echo early")
    spool = box.spool("job")
    assert spool.lines() == ["exit 0"]
    box.shell("go", "touch /go")
    assert until_record(spool, "end") == ["exit 0", "end"]
    assert spool.out.read_text() == "early\nlate\n"


def test_kill_ends_the_job_at_its_limit(box: Box) -> None:
    """Both streams together reach exactly the limit, and the job is overran."""
    keys = ("limit", 100_000, "over", "kill")
    ended, out, err = box.run("job", "/bin/sh", "-c", "yes >&2 & yes", keys=keys)
    assert ended == ["ok", "overran"]
    assert len(out) + len(err) == 100_000
    assert until_record(box.spool("job"), "end") == ["overran", "end"]


def test_exactly_the_limit_is_allowed(box: Box) -> None:
    """A job that writes as much as it may is not overran."""
    keys = ("limit", 100_000, "over", "kill")
    ended, out, _ = box.run("job", "/bin/sh", "-c", "head -c 100000 /dev/zero", keys=keys)
    assert ended == ["ok", "exit", "0"]
    assert len(out) == 100_000


def test_drop_oldest_keeps_the_end_and_the_offsets(box: Box) -> None:
    """The file's size counts every byte, its head is a hole, and what is kept is right at its offset."""
    keys = ("limit", MIB, "over", "drop-oldest")
    ended, _, _ = box.run("job", "/bin/sh", "-c", "seq -w 0 2000000", keys=keys)
    assert ended == ["ok", "exit", "0"]
    path = box.spool("job").out
    line = len("0000000\n")
    assert path.stat().st_size == line * 2_000_001
    assert path.stat().st_blocks * 512 <= MIB + MIB // 8 + 3 * MIB
    with path.open("rb") as file:
        start = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        assert path.stat().st_size - start >= MIB
        file.seek(start - start % line + line)
        first = file.tell() // line
        for number, text in enumerate(file, first):
            assert text == b"%07d\n" % number


def test_block_waits_for_the_reader(box: Box) -> None:
    """The writer stands still at the limit until a trim, and every byte arrives once."""
    keys = ("limit", 65_536, "over", "block")
    box.spawn("job", "/bin/sh", "-c", "seq -w 0 99999; echo done >&2", keys=keys)
    spool = box.spool("job")
    read = b""
    with box.client() as client:
        while b"99999" not in read[-6:]:
            size = spool.out.stat().st_size
            assert size - len(read) <= 65_536
            if size == len(read):
                assert client.ask("ping").ok
                continue
            with spool.out.open("rb") as file:
                file.seek(len(read))
                read += file.read(size - len(read))
            assert client.ask("trim", "job", "stdout", len(read)).words == ["ok"]
    assert box.wait("job") == ["ok", "exit", "0"]
    assert read == b"".join(b"%05d\n" % number for number in range(100_000))


def test_block_holds_the_record_until_all_is_read(box: Box) -> None:
    """A job that has ended with its pipe full has no record before the reader made room."""
    box.spawn("job", "/bin/sh", "-c", "head -c 6000 /dev/zero", keys=("limit", 4096, "over", "block"))
    spool = box.spool("job")
    with box.client() as client:
        while spool.out.stat().st_size < 4096:
            assert client.ask("ping").ok
        assert spool.lines() == []
        assert client.ask("trim", "job", "stdout", 4096).words == ["ok"]
    assert box.wait("job") == ["ok", "exit", "0"]
    assert spool.out.stat().st_size == 6000


def test_a_full_disk_loses_bytes_and_says_so(box: Box) -> None:
    """The job runs on, the lost bytes are counted, and the preallocated record is written."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "spool", box.folder / "spool"], check=True)
    try:
        spool = box.spool("job")
        for record in (spool.record, box.spool("late").record, box.spool("go").record):
            record.touch()
            subprocess.run(["fallocate", "-n", "-l", "4096", record], check=True)
        ended, out, _ = box.run("job", "/bin/sh", "-c", "head -c 1000000 /dev/zero && exit 3")
        assert ended == ["ok", "exit", "3"]
        lines = until_record(spool, "end")
        assert lines == ["exit 3", f"lost stdout {1_000_000 - len(out)}", "end"]

        # A holder that writes on after the exit: the total comes again, before the end.
        later = "(while [ ! -e /go ]; do sleep 0.01; done; head -c 5000 /dev/zero) & head -c 1000 /dev/zero"
        assert box.run("late", "/bin/sh", "-c", later)[0] == ["ok", "exit", "0"]
        box.shell("go", "touch /go")
        lines = until_record(box.spool("late"), "end")
        assert lines == ["exit 0", "lost stdout 1000", "lost stdout 6000", "end"]
    finally:
        subprocess.run(["umount", "-l", box.folder / "spool"], check=True)


def test_a_job_that_reads_its_own_pipe_hangs_nobody(box: Box) -> None:
    """Bytes that were counted at the exit and then stolen from the pipe do not stop pid 1."""
    thief = "(while [ ! -e /go ]; do sleep 0.01; done; head -c 1904 </dev/stdout >/stolen; touch /done; sleep 60) &"
    script = f"{thief} head -c 6000 /dev/zero; exit 3"
    box.spawn("job", "/bin/sh", "-c", script, keys=("limit", 4096, "over", "block"))
    spool = box.spool("job")
    with box.client() as client:
        while spool.out.stat().st_size < 4096:
            assert client.ask("ping").ok
        box.shell("steal", "touch /go; while [ ! -e /done ]; do sleep 0.01; done; stat -c %s /stolen")
        assert spool.lines() == []
        assert client.ask("trim", "job", "stdout", 4096).words == ["ok"]
        assert box.wait("job") == ["ok", "exit", "3"]
        assert client.ask("stop", 0).words == ["ok"]


def test_a_job_may_open_its_streams_by_name(box: Box) -> None:
    """An unprivileged job writes to /dev/stdout and /dev/stderr."""
    keys = ("uid", 2000, "gid", 2000)
    ended, out, err = box.run("job", "/bin/sh", "-c", "echo o >/dev/stdout; echo e >/dev/stderr", keys=keys)
    assert (ended, out, err) == (["ok", "exit", "0"], "o\n", "e\n")
