"""Archives by chance: whatever the bytes, nothing leaves the root, and a refusal is an ArchiveError."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tempfile
import zipfile
from pathlib import Path

import pytest
from archive_kit import (
    BOUNDS,
    DIRECTORY,
    END,
    FIFO,
    FILE,
    HARD,
    LINK,
    about,
    directory,
    file,
    header,
    link,
    padded,
    pax,
    with_checksum,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.droplets.archive import ArchiveError
from agent.droplets.tar import TarReader, parse_pax
from agent.droplets.writer import ArchiveReader, write_tree
from agent.droplets.zip import ZipReader

pytestmark = pytest.mark.unit
fuzz = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

VALID = (
    directory(b"d", 0o700)
    + file(b"d/a", b"contents" * 100)
    + pax({b"path": b"long" * 30, b"mtime": b"1.5"})
    + file(b"x", b"x")
    + about(b"L", b"name" * 40 + b"\0")
    + file(b"y", b"y")
    + link(b"l", b"d")
    + link(b"h", b"d/a", HARD)
    + END
)


def a_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d/a", "contents" * 100)
        archive.writestr("é", "x")
        linked = zipfile.ZipInfo("l")
        linked.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(linked, "d")
    return out.getvalue()


ZIP = a_zip()


def try_to_write(make: type[TarReader] | type[ZipReader], data: bytes) -> None:
    """Into a directory beside a guard; every promise about the result is checked."""
    with tempfile.TemporaryDirectory() as top:
        guard, root = Path(top, "guard"), Path(top, "root")
        guard.write_text("untouched")
        root.mkdir()
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            source = io.BytesIO(data)
            reader: ArchiveReader = (
                ZipReader(source, BOUNDS) if make is ZipReader else TarReader(source.read, BOUNDS)
            )
            write_tree(reader, fd, BOUNDS)
        except ArchiveError:
            pass
        finally:
            os.close(fd)
        assert sorted(os.listdir(top)) == ["guard", "root"]
        assert guard.read_text() == "untouched"
        assert guard.stat().st_nlink == 1
        for path in root.rglob("*"):
            status = path.lstat()
            assert (
                stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)
            )
            assert stat.S_ISLNK(status.st_mode) or not stat.S_IMODE(status.st_mode) & 0o7000


edits = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6
)


def edited(data: bytes, changes: list[tuple[float, bytes]]) -> bytes:
    out = bytearray(data)
    for where, new in changes:
        at = int(where * len(out))
        out[at : at + len(new)] = new
    return bytes(out)


def with_checksums(data: bytes) -> bytes:
    """As if the sender had meant it: every block that may be a header gets a right checksum."""
    blocks = [data[at : at + 512] for at in range(0, len(data) - 511, 512)]
    return b"".join(with_checksum(block) if block[257:262] == b"ustar" else block for block in blocks)


@fuzz
@given(edits)
def test_a_damaged_tar_harms_nobody(changes: list[tuple[float, bytes]]) -> None:
    """Most are stopped by a checksum."""
    try_to_write(TarReader, edited(VALID, changes))


@fuzz
@given(edits)
def test_a_damaged_tar_with_right_checksums_harms_nobody(changes: list[tuple[float, bytes]]) -> None:
    """These get deeper."""
    try_to_write(TarReader, with_checksums(edited(VALID, changes)))


@fuzz
@given(edits, st.booleans())
def test_a_damaged_gzip_harms_nobody(changes: list[tuple[float, bytes]], twice: bool) -> None:
    """In one member or two."""
    whole = gzip.compress(VALID[:900]) + gzip.compress(VALID[900:]) if twice else gzip.compress(VALID)
    try_to_write(TarReader, edited(whole, changes))


@fuzz
@given(edits)
def test_a_damaged_zip_harms_nobody(changes: list[tuple[float, bytes]]) -> None:
    """Its directory is a table of offsets: all of them may be wrong."""
    try_to_write(ZipReader, edited(ZIP, changes))


names = st.sampled_from(
    [
        b"a",
        b"b",
        b"a/b",
        b"b/a",
        b"a/b/c",
        b"../x",
        b"/x",
        b".",
        b"",
        b"a/..",
        b"./a/",
        b"a//b",
        b"\xff",
        b"c\n",
    ]
)
members = st.tuples(
    st.sampled_from([FILE, FILE, HARD, LINK, LINK, DIRECTORY, FIFO, b"3", b"7", b"\0"]),
    names,
    names | st.sampled_from([b"..", b"/", b"../guard", b"/tmp"]),
    st.binary(max_size=20),
    st.integers(0, 0o7777),
)


@fuzz
@given(st.lists(members, max_size=12))
def test_members_in_any_order_stay_inside(chosen: list[tuple[bytes, bytes, bytes, bytes, int]]) -> None:
    """Links, files and directories over and through each other."""
    data = b""
    for kind, name, target, contents, mode in chosen:
        body = contents if kind in (FILE, b"7", b"\0") else b""
        data += header(name, kind, size=len(body), mode=mode, target=target) + padded(body)

    try_to_write(TarReader, data + END)


@fuzz
@given(
    st.binary(max_size=60) | edits.map(lambda changes: edited(b"15 path=abc/def\n12 mtime=1.5\n", changes))
)
def test_pax_records_are_read_or_refused(data: bytes) -> None:
    """And what is read was there."""
    try:
        records = parse_pax(data)
    except ArchiveError:
        return
    assert all(key + b"=" + value in data for key, value in records.items())
