"""Packing: one pass over the output of GNU tar makes the droplet, its checksum and its layer."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from archive_kit import END, FIFO, A, file, header, link, tree_of
from droplets_kit import MIB, WAIT_S, layers_in, peer, until

from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.pack import Packed, pack
from agent.droplets.unpacker import Unpacker

pytestmark = pytest.mark.kernel

BOUNDS = Bounds(total_bytes=64 * MIB)
#: As the staging task calls it, in the container.
TAR = (
    "tar",
    "--format=gnu",
    "--sort=name",
    "--numeric-owner",
    "--owner=0",
    "--group=0",
    "-b",
    "512",
    "-c",
    ".",
)


@asynccontextmanager
async def output_of(*argv: str, cwd: Path) -> AsyncIterator[int]:
    """The reading end of a program's standard output."""
    read_fd, write_fd = os.pipe()
    process = await asyncio.create_subprocess_exec(*argv, cwd=cwd, stdout=write_fd, stderr=subprocess.DEVNULL)
    os.close(write_fd)
    try:
        yield read_fd
    finally:
        os.close(read_fd)
        async with asyncio.timeout(WAIT_S):
            await process.wait()


def make_app(directory: Path) -> Path:
    """Some hundred files, a link, an odd mode, and one file of several blocks."""
    dice = random.Random(11)
    for number in range(300):
        path = directory / f"lib/{number % 7}/module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(20).hex().encode() * dice.randrange(60))
    (directory / "python3").symlink_to("/usr/bin/python3")
    (directory / "run").touch(mode=0o700)
    (directory / "large").write_bytes(dice.randbytes(3 * MIB))
    return directory


async def packed(read_fd: int, base: Path, bounds: Bounds = BOUNDS) -> Packed:
    return await pack(
        read_fd,
        base / "droplet.tgz",
        unpacker=Unpacker(low_water_bytes=0),
        layer_dir=base / "layer",
        bounds=bounds,
    )


async def test_a_pass_makes_droplet_checksum_and_layer(base_dir: Path) -> None:
    """The layer is the tree that was packed, and the droplet unpacks to it too, here and with GNU tar."""
    app = make_app(base_dir / "app")

    async with output_of(*TAR, cwd=app) as read_fd:
        done = await packed(read_fd, base_dir)

    written = (base_dir / "droplet.tgz").read_bytes()
    assert done.sha1 == hashlib.sha1(written, usedforsecurity=False).hexdigest()
    assert (done.bytes, done.tar_bytes) == (len(written), len(gzip.decompress(written)))
    assert done.layer is not None
    assert done.layer.bytes == sum(
        path.stat().st_size for path in app.rglob("*") if path.is_file() and not path.is_symlink()
    )
    assert tree_of(base_dir / "layer") == tree_of(app)
    (base_dir / "again").mkdir()
    subprocess.run(["tar", "-xzf", base_dir / "droplet.tgz", "-C", base_dir / "again"], check=True)
    assert tree_of(base_dir / "again") == tree_of(app)


async def test_stage_here_and_run_here_is_one_layer(base_dir: Path) -> None:
    """The adopted tree is what another host makes of the same droplet by download."""
    app = make_app(base_dir / "app")
    async with output_of(*TAR, cwd=app) as read_fd:
        done = await packed(read_fd, base_dir)
    assert done.layer is not None

    async with peer() as controller, layers_in(base_dir / "here") as (here, _):
        adopted = await here.adopt(base_dir / "layer", done.sha1, done.layer.bytes, done.layer.files)
        async with layers_in(base_dir / "there") as (there, _):
            url = controller.serve((base_dir / "droplet.tgz").read_bytes())[1]
            fetched = await there.ensure(done.sha1, url, BOUNDS.total_bytes)

    assert (adopted.sha1, adopted.bytes) == (fetched.sha1, fetched.bytes)
    assert tree_of(adopted.path) == tree_of(fetched.path)


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (A + header(b"pipe", FIFO) + END, "a FIFO"),
        (link(b"d", b"..") + file(b"d/x", b"x") + END, "Not a directory"),
        (A[:-1], "truncated"),
        (b"", "truncated"),
    ],
)
async def test_a_tree_that_is_no_layer_is_no_droplet(archive: bytes, why: str, base_dir: Path) -> None:
    """What an app leaves behind may be hostile as well; then nothing is kept."""
    (base_dir / "archive").write_bytes(archive)

    with pytest.raises(ArchiveError, match=why):
        async with output_of("cat", "archive", cwd=base_dir) as read_fd:
            await packed(read_fd, base_dir)

    assert not (base_dir / "droplet.tgz").exists()


async def test_a_sparse_file_of_terabytes_costs_little(base_dir: Path) -> None:
    """To tar it is terabytes of zeros: the worker gives up at its declared size, and with it the packing."""
    app = base_dir / "app"
    app.mkdir()
    with (app / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 42)
    begun = time.monotonic()

    with pytest.raises(ArchiveError, match="sparse: more than 67108864 bytes"):
        async with output_of(*TAR, cwd=app) as read_fd:
            await packed(read_fd, base_dir)

    assert time.monotonic() - begun < WAIT_S
    assert not (base_dir / "droplet.tgz").exists()


async def test_a_packing_that_is_cancelled_takes_its_worker_along(base_dir: Path) -> None:
    """A staging that is stopped while it packs; that no process is left is seen after every test."""
    async with output_of("cat", cwd=base_dir) as read_fd:
        task = asyncio.create_task(packed(read_fd, base_dir), name="pack")
        await until((base_dir / "layer").exists)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert not (base_dir / "droplet.tgz").exists()
