"""The tar reader and the writer: which archives are refused, and what the others become. One archive for each kind."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from archive_kit import (
    BOUNDS,
    END,
    FINE,
    HARD,
    MTIME,
    REFUSED,
    A,
    base256,
    directory,
    file,
    link,
    packed,
    pax,
    tree_of,
)

from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.tar import TarReader
from agent.droplets.writer import TreeWriter, write_tree

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """The worker has none, so that the archive's modes are the tree's."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The tree's place, beside a file that nobody may touch."""
    (tmp_path / "guard").write_text("untouched")
    (tmp_path / "root").mkdir(mode=0o755)
    return tmp_path / "root"


def unpack(data: bytes, root: Path, bounds: Bounds = BOUNDS) -> TreeWriter:
    source = io.BytesIO(data)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return write_tree(TarReader(source.read, bounds), fd, bounds)
    finally:
        os.close(fd)


def assert_nothing_outside(root: Path) -> None:
    assert sorted(os.listdir(root.parent)) == ["guard", "root"]
    assert (root.parent / "guard").read_text() == "untouched"
    assert (root.parent / "guard").stat().st_nlink == 1


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_archive_is_refused_and_touches_nothing_outside(name: str, root: Path) -> None:
    """Whatever was written before the refusal stays below the root."""
    one = REFUSED[name]

    with pytest.raises(ArchiveError) as refused:
        unpack(one.data, root)

    assert one.why in str(refused.value)
    assert_nothing_outside(root)


@pytest.mark.parametrize("name", FINE)
def test_an_odd_archive_is_fine(name: str, root: Path) -> None:
    """Its tree is exactly this; the root's own mode and owner are never the archive's."""
    one = FINE[name]

    unpack(one.data, root)

    assert tree_of(root) == one.tree
    assert root.stat().st_mode & 0o7777 == 0o755
    assert not [path for path in (root, *root.rglob("*")) if os.listxattr(path, follow_symlinks=False)]
    assert_nothing_outside(root)


@pytest.mark.parametrize("size", [1, 7, 511, 4096])
def test_the_size_of_reads_does_not_matter(size: int, root: Path) -> None:
    """A pipe gives what it has, a single byte too."""
    whole = file(b"d/a", b"a" * 5000) + link(b"l", b"d/a") + END
    source = io.BytesIO(gzip.compress(whole[:2000]) + gzip.compress(whole[2000:]) + bytes(600))
    fd = os.open(root, os.O_RDONLY)

    write_tree(TarReader(lambda limit: source.read(min(limit, size)), BOUNDS), fd, BOUNDS)

    os.close(fd)
    assert tree_of(root) == {"d": "directory 755", "d/a": "file 644 " + "a" * 100, "l": "link d/a"}


@pytest.mark.parametrize(
    ("member", "mtime_s"),
    [
        (A, MTIME),
        (file(b"a", mtime=base256(-1)), 0),
        (file(b"a", mtime=base256(2**40)), 2**32 - 1),
        (pax({b"mtime": b"1234567890.987654321"}) + A, 1234567890),
        (pax({b"mtime": b"-5.5"}) + A, 0),
        (pax({b"mtime": b""}) + A, MTIME),
        (directory(b"a") + file(b"a/b"), MTIME),
        (link(b"a", b"x"), MTIME),
    ],
)
def test_times_are_kept_and_clamped(member: bytes, mtime_s: int, root: Path) -> None:
    """Compiled Python depends on its source's time; no file system takes any number."""
    unpack(member + END, root)

    assert (root / "a").lstat().st_mtime == mtime_s


def test_a_hard_link_is_one_inode(root: Path) -> None:
    """And one to a link is the link, not what it points to."""
    unpack(A + link(b"b", b"a", HARD) + link(b"l", b"../guard") + link(b"m", b"l", HARD) + END, root)

    assert (root / "a").stat().st_ino == (root / "b").stat().st_ino
    assert (root / "l").lstat().st_ino == (root / "m").lstat().st_ino


def test_the_writer_counts_inodes_and_bytes(root: Path) -> None:
    """Parents that nobody named are inodes too."""
    writer = unpack(file(b"x/y/a", b"aaa") + link(b"l", b"x") + END, root)

    assert (writer.files, writer.size_bytes) == (4, 3)


def test_bounds_are_met_exactly(root: Path) -> None:
    """As many members and bytes as may be are fine."""
    data = b"".join(file(b"%d" % number, b"x") for number in range(300))

    writer = unpack(data + END, root, replace(BOUNDS, total_bytes=300))

    assert (writer.files, writer.size_bytes) == (300, 300)


def test_a_disk_at_its_low_water_mark_ends_it(root: Path) -> None:
    """Bytes of a file that is under way, and empty files as well, since inodes cost blocks."""
    no_room = replace(BOUNDS, low_water_bytes=1 << 62)

    for data in (A, directory(b"d") + link(b"d/l", b"x")):
        with pytest.raises(ArchiveError, match="low-water mark"):
            unpack(data + END, root, no_room)


def test_descriptors_are_closed_again(root: Path) -> None:
    """After a refusal in the depth of a tree as after a whole archive."""
    before = sorted(os.listdir("/proc/self/fd"))

    unpack(FINE["depth 128"].data, root)
    with pytest.raises(ArchiveError):
        unpack(FINE["depth 128"].data[: -len(END)] + file(b"../x"), root)

    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_what_others_pack_arrives_as_it_was(kind: int, root: Path, tmp_path: Path) -> None:
    """A tree with long names, links and odd modes, packed by Python's own writer."""
    source = tmp_path / "source"
    deep = source / "/".join(["component" * 2] * 6)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(os.urandom(70_000))
    (source / "empty").touch(mode=0o600)
    (source / "link").symlink_to("nowhere/at/all")
    os.link(source / "empty", source / "hard")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=kind) as archive:
        archive.add(source, ".")
    before = tree_of(source)

    unpack(out.getvalue(), root)

    assert tree_of(root) == before
    shutil.rmtree(source)
    assert_nothing_outside(root)


def test_a_small_bomb_is_harmless(root: Path) -> None:
    """The ratio counts once so much has come out; below that, bytes bound it."""
    unpack(packed(file(b"a", bytes(200 << 10)) + END), root)

    assert (root / "a").stat().st_size == 200 << 10
