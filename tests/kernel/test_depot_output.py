"""The output of jobs through the whole manager: complete, in order, for late readers, and at the limit."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import app, sh
from depot_kit import depot as depot
from depot_kit import stack as stack

from container import BindMount, Container, Depot, Job, Output, Past

pytestmark = pytest.mark.kernel

MIB = 1 << 20
LINE = b"%063d\n"
LINE_BYTES = 64


def numbered(size_bytes: int) -> bytes:
    """Lines that say their own place, so that a byte lost, doubled or moved shows."""
    return b"".join(LINE % number for number in range(size_bytes // LINE_BYTES))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to be written out by jobs."""
    place = tmp_path_factory.mktemp("sources")
    (place / "small").write_bytes(numbered(MIB))
    (place / "big").write_bytes(numbered(100 * MIB))
    place.chmod(0o755)
    return place


@pytest_asyncio.fixture
async def box(depot: Depot, stack: Path, sources: Path) -> AsyncIterator[Container]:
    yield await depot.create(app(stack, handle="box", binds=(BindMount(sources, "/sources"),)))


async def digest(job: Job, stream: str = "stdout") -> tuple[int, str]:
    """Bytes and their hash, as a follower gets them; a gap is a failure."""
    hashed, at = hashlib.sha256(), 0
    async for chunk in job.stream(stream):
        assert chunk.gap_bytes == 0
        assert chunk.offset == at
        hashed.update(chunk.data)
        at += len(chunk.data)
    return at, hashed.hexdigest()


def digest_of(path: Path) -> tuple[int, str]:
    return path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_mebibyte_arrives_whole_fifty_times(box: Container, sources: Path) -> None:
    """Every second reader is attached when the job has ended, the others at some moment before."""
    wanted = digest_of(sources / "small")
    for number in range(50):
        job = await box.spawn(sh("cat /sources/small"))
        if number % 2:
            assert (await job.wait()).code == 0
        assert await digest(job) == wanted, f"run {number}"
        assert (await job.wait()).code == 0
        await box.forget(job.id)


@pytest.mark.parametrize("past", Past)
async def test_a_hundred_mebibytes_below_the_limit(box: Container, sources: Path, past: Past) -> None:
    """Five times; below its limit no way of going on past it changes anything."""
    wanted = await asyncio.to_thread(digest_of, sources / "big")
    for number in range(5 if past is Past.DROP_OLDEST else 1):
        job = await box.spawn(sh("cat /sources/big", output=Output(110 * MIB, past)))
        if number % 2 == 0:
            assert (await job.wait()).code == 0
        assert await digest(job) == wanted, f"run {number}"
        await job.wait()
        await box.forget(job.id)


async def test_kill_counts_both_streams_together(box: Container) -> None:
    """Half of the limit on each is the whole of it: one byte more ends the job, and not one more is kept."""
    half = 32768
    exact = await box.run(
        sh(f"head -c {half} /dev/zero; head -c {half} /dev/zero >&2", output=Output(2 * half, Past.KILL))
    )
    over = await box.run(
        sh(
            f"head -c {half} /dev/zero; head -c {half + 1} /dev/zero >&2; sleep 1000",
            output=Output(2 * half, Past.KILL),
        )
    )

    assert exact.status.code == 0
    assert over.status.overran
    assert (len(over.stdout), len(over.stderr)) == (half, half)
    assert box.events.kinds == ("command exceeded maximum output",)


async def test_drop_oldest_counts_each_stream_for_itself(box: Container) -> None:
    """A flood on one stream takes nothing from the other, and the job never waits."""
    flood = "cat /sources/big >&2; echo end"
    job = await box.spawn(sh(f"echo kept; {flood}", output=Output(MIB, Past.DROP_OLDEST)))

    assert (await job.wait()).code == 0
    assert await job.output("stdout") == b"kept\nend\n"
    errors = await job.output("stderr")
    assert MIB <= len(errors) < 2 * MIB
    assert job.size_bytes("stderr") == 100 * MIB
    first = 100 * MIB - len(errors)
    at = -first % LINE_BYTES
    assert errors[at : at + LINE_BYTES] == LINE % ((first + at) // LINE_BYTES)
    assert errors.endswith(LINE % (100 * MIB // LINE_BYTES - 1))


async def test_block_stops_one_stream_and_not_the_other(box: Container) -> None:
    """The job stands still in its write until a reader has made room; what it wrote elsewhere is there."""
    job = await box.spawn(
        sh("echo before >&2; cat /sources/small; echo after >&2", output=Output(65536, Past.BLOCK))
    )
    errors = job.stream("stderr")
    assert (await anext(errors)).data == b"before\n"
    pieces = []
    async for chunk in job.stream("stdout"):
        assert job.size_bytes("stdout") - chunk.offset <= 65536
        pieces.append(chunk.data)
        await job.trim("stdout", chunk.offset + len(chunk.data))

    assert b"".join(pieces) == numbered(MIB)
    assert (await anext(errors)).data == b"after\n"
    assert (await job.wait()).code == 0


async def test_a_slow_reader_slows_nobody(box: Container, sources: Path) -> None:
    """A reader that has stopped after its first chunk holds up neither the job nor another reader."""
    job = await box.spawn(sh("cat /sources/big", output=Output(None)))
    slow = job.stream("stdout")
    first = await anext(slow)
    assert await digest(job) == await asyncio.to_thread(digest_of, sources / "big")
    assert (await job.wait()).code == 0
    rest = [chunk async for chunk in slow]
    assert first.offset == 0
    assert len(first.data) + sum(len(chunk.data) for chunk in rest) == 100 * MIB


async def test_spool_files_are_the_hosts_alone(box: Container) -> None:
    """0600 in a directory of 0700: no other user of the host reads an app's output."""
    job = await box.spawn(sh("echo secret; exec sleep 1000"))
    await anext(job.stream("stdout"))
    spool = box.directory / "spool"
    assert spool.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in spool.iterdir()} == {0o600}
    assert {path.stat().st_uid for path in spool.iterdir()} == {os.getuid()}
