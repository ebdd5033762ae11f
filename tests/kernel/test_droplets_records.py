"""The layers that a starting agent finds, and the removal of trees from the disk."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from archive_kit import END, file, packed
from droplets_kit import MIB, Peer, layers_in, peer

from agent.droplets import trash
from agent.droplets.layers import LayerRecord

pytestmark = pytest.mark.kernel

DROPLET = packed(file(b"app/run", b"#!/bin/sh\n", mode=0o755) + END)
LIMIT_BYTES = 64 * MIB


@pytest_asyncio.fixture
async def controller() -> AsyncIterator[Peer]:
    async with peer() as found:
        yield found


def write_record(base: Path, digest: str, **changes: object) -> None:
    path = base / "layers" / f"{digest}.json"
    record = msgspec.json.decode(path.read_bytes(), type=LayerRecord)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, **changes)))


def is_synced(base: Path, digest: str) -> bool:
    return msgspec.json.decode((base / "layers" / f"{digest}.json").read_bytes(), type=LayerRecord).synced


async def made(base: Path, controller: Peer) -> str:
    """A layer of an agent that has ended."""
    digest, url = controller.serve(DROPLET)
    async with layers_in(base) as (layers, _):
        await layers.ensure(digest, url, LIMIT_BYTES)
    return digest


async def test_a_layer_is_known_again(base_dir: Path, controller: Peer) -> None:
    """It was synced in the background, so that even another boot may take it."""
    digest = await made(base_dir, controller)
    assert is_synced(base_dir, digest)
    write_record(base_dir, digest, boot_id="another")

    async with layers_in(base_dir) as (layers, _):
        layer = await layers.ensure(digest, None, LIMIT_BYTES)

    assert (layer.bytes, layer.path.is_dir()) == (10, True)


async def test_a_layer_of_before_a_crash_goes_to_the_trash(base_dir: Path, controller: Peer) -> None:
    """Not synced, and of another boot: its files may be full of zeros."""
    digest = await made(base_dir, controller)
    write_record(base_dir, digest, boot_id="another", synced=False)

    async with layers_in(base_dir) as (layers, _):
        assert layers.known(digest) is None

    assert os.listdir(base_dir / "layers") == []


async def test_a_layer_that_a_killed_agent_did_not_sync_is_synced_now(
    base_dir: Path, controller: Peer
) -> None:
    """Of this boot it is whole; without the mark it would be lost with the next one."""
    digest = await made(base_dir, controller)
    write_record(base_dir, digest, synced=False)

    async with layers_in(base_dir) as (layers, _):
        assert layers.known(digest) is not None

    assert is_synced(base_dir, digest)


@pytest.mark.parametrize("record", [None, b"", b"{", b'{"bytes": "many"}', b"\xff"])
async def test_a_tree_without_a_sound_record_is_no_layer(
    record: bytes | None, base_dir: Path, controller: Peer
) -> None:
    """Nor is a tree that was being made, nor a record of nothing."""
    digest = await made(base_dir, controller)
    path = base_dir / "layers" / f"{digest}.json"
    path.unlink()
    if record is not None:
        path.write_bytes(record)
    (base_dir / "layers" / ".new-0123").mkdir()
    (base_dir / "layers" / "lost+found").mkdir()
    (base_dir / "layers" / f"{'0' * 40}.json").write_text("{}")

    async with layers_in(base_dir) as (layers, _):
        assert layers.known(digest) is None

    assert os.listdir(base_dir / "layers") == []


def test_a_very_deep_tree_is_removed(base_dir: Path) -> None:
    """Deeper than any path may be long, and with directories that are closed to their owner."""
    root, aside = base_dir / "deep", base_dir / "trash"
    root.mkdir()
    aside.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for level in range(6000):
        os.mkdir("d", dir_fd=fd)
        if level % 1000 == 0:
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.symlink("/", "l", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.fchmod(fd, 0)
        os.close(fd)
        fd = below
    os.close(fd)

    trash.throw_away(root, aside)
    trash.throw_away(root, aside)  # twice is once
    trash.empty(aside)

    assert sorted(os.listdir(base_dir)) == ["trash"]
    assert os.listdir(aside) == []


def test_a_removal_that_was_broken_off_is_ended(base_dir: Path) -> None:
    """What had been lifted out of the tree lies in the trash as well."""
    (base_dir / "a.x" / "b" / "c").mkdir(parents=True)
    (base_dir / ".a.x.1" / "e" / "f").mkdir(parents=True)
    (base_dir / "file").touch()
    (base_dir / "link").symlink_to("/")

    trash.empty(base_dir)

    assert os.listdir(base_dir) == []
