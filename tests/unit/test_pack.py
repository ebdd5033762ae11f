"""Packing: plain gzip, the same bytes whatever the pieces, right sums, bounded."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import random
import subprocess
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from archive_kit import END, file

from agent.droplets import pack as packing
from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.pack import BLOCK, Packed, compress_block, pack

pytestmark = pytest.mark.unit

BOUNDS = Bounds(total_bytes=64 << 20)


def mixed(size: int) -> bytes:
    """Something like an app: text, repetitions, and what cannot be pressed."""
    dice = random.Random(5)
    words = [dice.randbytes(3).hex() for _ in range(500)]
    out = bytearray()
    while len(out) < size:
        out += " ".join(dice.choices(words, k=2000)).encode()
        out += dice.randbytes(700)
        out += bytes(dice.randrange(900))
    return bytes(out[:size])


async def packed(pieces: Sequence[bytes], out: Path, bounds: Bounds = BOUNDS) -> Packed:
    """Through a pipe, written by a thread so that it may fill up."""
    read_fd, write_fd = os.pipe()

    def write() -> None:
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(write_fd, view) :]
        except BrokenPipeError:
            pass
        finally:
            os.close(write_fd)

    writing = asyncio.create_task(asyncio.to_thread(write), name="write")
    try:
        return await pack(read_fd, out, bounds=bounds)
    finally:
        os.close(read_fd)
        await writing


@pytest.mark.parametrize(
    "size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 12_345, 12 * BLOCK]
)
async def test_what_is_packed_is_plain_gzip(size: int, tmp_path: Path) -> None:
    """To Python, to zlib's own check and to gzip(1); the sums are those of the file."""
    data = mixed(size)

    done = await packed([data], tmp_path / "out")

    written = (tmp_path / "out").read_bytes()
    assert gzip.decompress(written) == data
    assert zlib.decompress(written, 31) == data
    subprocess.run(["gzip", "--test"], stdin=(tmp_path / "out").open("rb"), check=True)
    assert done == Packed(
        hashlib.sha1(written, usedforsecurity=False).hexdigest(), len(written), len(data), None
    )


async def test_pieces_and_threads_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A droplet's checksum must not depend on how a pipe happened to be read."""
    data = mixed(3 * BLOCK + 777)
    dice = random.Random(3)
    cuts = sorted(dice.randrange(len(data)) for _ in range(300))
    odd = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    sums = set()
    for number, threads in enumerate((1, 2, 7)):
        monkeypatch.setattr(packing, "THREADS", threads)
        for pieces in ([data], odd):
            sums.add((await packed(pieces, tmp_path / f"{number}-{len(pieces)}")).sha1)

    assert len(sums) == 1


async def test_it_is_about_as_small_as_gzip_makes_it(tmp_path: Path) -> None:
    """Blocks of our own cost little: within 3 % of gzip -6 on something like an app."""
    data = mixed(8 << 20)

    done = await packed([data], tmp_path / "out")

    reference = subprocess.run(["gzip", "-6"], input=data, capture_output=True, check=True).stdout
    assert done.bytes < 1.03 * len(reference)


async def test_a_tar_that_is_packed_is_a_tar(tmp_path: Path) -> None:
    """To GNU tar and to Python's."""
    data = file(b"a", mixed(BLOCK)) + file(b"b", b"bbb") + END

    await packed([data], tmp_path / "out")

    listed = subprocess.run(["tar", "-tzf", tmp_path / "out"], capture_output=True, check=True)
    assert listed.stdout.split() == [b"a", b"b"]
    with tarfile.open(tmp_path / "out") as archive:
        assert archive.getnames() == ["a", "b"]


def test_a_block_leans_on_the_one_before() -> None:
    """Its window is what makes blocks of our own cheap."""
    block = random.Random(1).randbytes(20_000)

    assert len(compress_block(block, block)) < 500 < len(compress_block(block, b""))


async def test_more_than_the_bounds_is_refused_while_it_comes(tmp_path: Path) -> None:
    """A sparse file is terabytes of zeros to tar: the host's disk and processor are not to pay for that."""
    few = replace(BOUNDS, total_bytes=BLOCK, members=1)

    with pytest.raises(ArchiveError, match=f"more than {BLOCK} bytes"):
        await packed([bytes(BLOCK)] * 400, tmp_path / "out", few)

    assert not (tmp_path / "out").exists()


async def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    """It is not this packing's to remove."""
    (tmp_path / "out").write_text("older")

    with pytest.raises(FileExistsError):
        await packed([b"x"], tmp_path / "out")

    assert (tmp_path / "out").read_text() == "older"


async def test_a_cancelled_packing_is_over_at_once(tmp_path: Path) -> None:
    """No thread goes on reading a pipe whose number may be somebody else's by now."""
    read_fd, write_fd = os.pipe()
    task = asyncio.create_task(pack(read_fd, tmp_path / "out", bounds=BOUNDS), name="pack")
    os.write(write_fd, b"x")
    while not (tmp_path / "out").exists():
        await asyncio.sleep(0)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert not (tmp_path / "out").exists()
    os.write(write_fd, b"still mine")
    assert os.read(read_fd, 100).endswith(b"still mine")
    os.close(read_fd)
    os.close(write_fd)
