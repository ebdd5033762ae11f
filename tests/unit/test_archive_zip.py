"""The zip reader: which archives are refused, and what the others become."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from archive_kit import BOUNDS, tree_of

from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.writer import TreeWriter, write_tree
from agent.droplets.zip import ZipReader

pytestmark = pytest.mark.unit

#: APPNOTE 4.3.12: where a central directory's record has its fields.
FLAGS, METHOD, CRC, PACKED_SIZE, SIZE, NAME, OFFSET = 8, 10, 16, 20, 24, 46, 42
#: APPNOTE 4.3.16, the end record.
END_ENTRIES, END_SIZE, END_OFFSET = 8, 12, 16


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "guard").write_text("untouched")
    (tmp_path / "root").mkdir(mode=0o755)
    return tmp_path / "root"


def unpack(data: bytes, root: Path, bounds: Bounds = BOUNDS) -> TreeWriter:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return write_tree(ZipReader(io.BytesIO(data), bounds), fd, bounds)
    finally:
        os.close(fd)


def entry(name: str, mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (2017, 7, 14, 2, 40, 0))
    info.external_attr = mode << 16
    info.compress_type = method
    return info


def zipped(*entries: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for info, data in entries:
            archive.writestr(info, data)
    return out.getvalue()


def patched(data: bytes, at: int, form: str, value: int, mark: bytes = b"PK\1\2") -> bytes:
    """A field of the first central record (or of the end record) with another value."""
    start = data.index(mark) + at
    return data[:start] + struct.pack(form, value) + data[start + struct.calcsize(form) :]


def renamed(data: bytes, old: bytes, new: bytes) -> bytes:
    """Names that `zipfile` would tidy up."""
    assert len(old) == len(new)
    return data.replace(old, new)


ONE = zipped((entry("a"), b"aaa"))
DEFLATED = zipped((entry("a", method=zipfile.ZIP_DEFLATED), b"a" * 1000))
LINK, PIPE = stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644
END = b"PK\5\6"


def with_zip64_end(data: bytes, directory_bytes: int) -> bytes:
    """The same, its end record deferring to one of 64 bits (as Go writes beyond 65,535 entries)."""
    at = data.index(END)
    size, offset = struct.unpack("<LL", data[at + END_SIZE : at + END_SIZE + 8])
    assert size
    record = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 1, directory_bytes, offset)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, at, 1)
    end = END + struct.pack("<HHHHLLH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:at] + record + locator + end


def overlapping(count: int) -> bytes:
    """Many names for one stretch of data: a bomb that no single member gives away."""
    contents = os.urandom(400) * 25  # each by itself is well below the bound of the ratio
    data = zipped((entry("00", method=zipfile.ZIP_DEFLATED), contents))
    at, end = data.index(b"PK\1\2"), data.index(END)
    record = data[at:end]
    directory = record * count
    tail = data[end:]
    tail = tail[:END_ENTRIES] + struct.pack("<HHLL", count, count, len(directory), at) + tail[20:]
    return data[:at] + directory + tail


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a zip"),
    "text": (b"<html>no such package</html>" * 9, "not a zip"),
    "truncated": (ONE[:-10], "not a zip"),
    "its beginning cut off": (ONE[20:], "zip: "),
    "no directory": (ONE[: ONE.index(b"PK\1\2")] + ONE[ONE.index(END) :], "zip: "),
    "directory elsewhere": (patched(ONE, END_OFFSET, "<L", 0, END), "zip: "),
    "directory over 64 MiB": (patched(ONE, END_SIZE, "<L", 65 << 20, END), "zip: "),
    "directory over 64 MiB, zip64": (with_zip64_end(ONE, 65 << 20), "zip: "),
    "directory of 2^63": (with_zip64_end(ONE, 1 << 63), "zip: "),
    "encrypted": (patched(ONE, FLAGS, "<H", 1), "a: encrypted"),
    "strongly encrypted": (patched(ONE, FLAGS, "<H", 0x41), "a: encrypted"),
    "bzip2": (zipped((entry("a", method=zipfile.ZIP_BZIP2), b"a")), "compressed by method 12"),
    "lzma": (zipped((entry("a", method=zipfile.ZIP_LZMA), b"a")), "compressed by method 14"),
    "unknown method": (patched(ONE, METHOD, "<H", 99), "compressed by method 99"),
    "dot-dot": (zipped((entry("../planted"), b"x")), "'..' in a name"),
    "dot-dot in the middle": (zipped((entry("a/../../planted"), b"x")), "'..' in a name"),
    "absolute": (zipped((entry("/planted"), b"x")), "an absolute name"),
    "NUL in a name": (renamed(zipped((entry("a_../x"), b"x")), b"a_..", b"a\0.."), "a NUL byte"),
    "long component": (zipped((entry("n" * 256), b"x")), "longer than 255"),
    "deep": (zipped((entry("d/" * 128 + "a"), b"x")), "deeper than 128"),
    "no name": (zipped((entry(""), b"x")), "in place of the root"),
    "through a link": (zipped((entry("d", LINK), b".."), (entry("d/planted"), b"x")), "Not a directory"),
    "through an absolute link": (
        zipped((entry("d", LINK), b"/tmp"), (entry("d/planted"), b"x")),
        "Not a directory",
    ),
    "link with NUL": (zipped((entry("d", LINK), b"a\0b")), "expected a link target"),
    "link of nothing": (zipped((entry("d", LINK), b"")), "expected a link target"),
    "link of 1 MiB": (zipped((entry("d", LINK), b"x" * (1 << 20))), "expected a link target"),
    "FIFO": (zipped((entry("p", PIPE), b"")), "expected a file, directory or symbolic link"),
    "device": (
        zipped((entry("d", stat.S_IFCHR | 0o644), b"")),
        "expected a file, directory or symbolic link",
    ),
    "directory with contents": (
        renamed(zipped((entry("dd"), b"x")), b"dd", b"d/"),
        "a directory with contents",
    ),
    "file over a directory": (zipped((entry("d/a"), b"x"), (entry("d"), b"x")), "Is a directory"),
    "wrong checksum": (patched(ONE, CRC, "<L", 1), "zip: Bad CRC-32"),
    "size too small": (patched(DEFLATED, SIZE, "<L", 999), "zip: Bad CRC-32"),
    "size too large": (patched(DEFLATED, SIZE, "<L", 1001), "its size differs"),
    "packed size too small": (patched(DEFLATED, PACKED_SIZE, "<L", 3), "zip: "),
    "packed size behind the file's end": (patched(ONE, PACKED_SIZE, "<L", 1 << 30), "zip: "),
    "stored size too large": (
        patched(patched(ONE, SIZE, "<L", 4), PACKED_SIZE, "<L", 4),
        "zip: ",
    ),
    "size of 4 GiB": (patched(DEFLATED, SIZE, "<L", 0xFFFFFFFE), "more than 1048576 bytes"),
    "offset outside": (patched(ONE, OFFSET, "<L", 0x7FFFFFFF), "zip: "),
    "another name in the member": (ONE.replace(b"a", b"b", 1), "zip: "),
    "broken deflate": (DEFLATED.replace(DEFLATED[31:35], b"\xff\xff\xff\xff", 1), "zip: "),
    "bad UTF-8 where it says UTF-8": (
        renamed(zipped((entry("é"), b"x")), "é".encode(), b"\xff\xff"),
        "zip: ",
    ),
    "members": (zipped(*((entry(f"{n}"), b"") for n in range(301))), "more than 300 members"),
    "bytes": (zipped((entry("a"), os.urandom((1 << 20) + 1))), "more than 1048576 bytes"),
    "ratio": (zipped((entry("a", method=zipfile.ZIP_DEFLATED), bytes(1 << 20))), "more than 100 to 1"),
    "overlapping members": (overlapping(100), "more than 100 to 1"),
}

FINE: dict[str, tuple[bytes, dict[str, str]]] = {
    "one": (ONE, {"a": "file 644 aaa"}),
    "deflated": (DEFLATED, {"a": "file 644 " + "a" * 100}),
    "empty": (zipped(), {}),
    "zip64": (with_zip64_end(ONE, ONE.index(END) - ONE.index(b"PK\1\2")), {"a": "file 644 aaa"}),
    "something in front": (b"#!/bin/sh\n" * 9 + ONE, {"a": "file 644 aaa"}),
    "with a comment": (patched(ONE, 20, "<H", 5, END) + b"hello", {"a": "file 644 aaa"}),
    "no mode": (patched(ONE, 38, "<L", 0), {"a": "file 644 aaa"}),
    "directories": (
        zipped((entry("d/", stat.S_IFDIR | 0o700), b""), (entry("d/a"), b"x"), (entry("e/a"), b"x")),
        {"d": "directory 700", "d/a": "file 644 x", "e": "directory 755", "e/a": "file 644 x"},
    ),
    "set-uid and sticky": (
        zipped((entry("s", stat.S_IFREG | 0o6755), b"s"), (entry("t/", stat.S_IFDIR | 0o1777), b"")),
        {"s": "file 755 s", "t": "directory 777"},
    ),
    "links": (
        zipped((entry("python3", LINK), b"/usr/bin/python3"), (entry("out", LINK), b"../../..")),
        {"python3": "link /usr/bin/python3", "out": "link ../../.."},
    ),
    "names of old code pages": (
        renamed(zipped((entry("a_"), b"x")), b"a_", b"a\xe9"),
        {"a\udce9": "file 644 x"},
    ),
    "names of UTF-8": (zipped((entry("é"), b"x")), {"é": "file 644 x"}),
    "backslashes": (zipped((entry("a\\..\\b"), b"x")), {"a\\..\\b": "file 644 x"}),
    "an impossible date": (patched(ONE, 12, "<L", 0), {"a": "file 644 aaa"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_zip_is_refused_and_touches_nothing_outside(name: str, root: Path) -> None:
    """With its reason."""
    data, why = REFUSED[name]

    with pytest.raises(ArchiveError) as refused:
        unpack(data, root)

    assert why in str(refused.value)
    assert sorted(os.listdir(root.parent)) == ["guard", "root"]
    assert (root.parent / "guard").read_text() == "untouched"


@pytest.mark.parametrize("name", FINE)
def test_an_odd_zip_is_fine(name: str, root: Path) -> None:
    """Its tree is exactly this."""
    data, tree = FINE[name]

    unpack(data, root)

    assert tree_of(root) == tree


def test_times_do_not_depend_on_where_the_host_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker could not read the host's time zone anyhow: there is an archive in its place."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")

    unpack(ONE, root)

    assert (root / "a").stat().st_mtime == 1_500_000_000


def test_a_directory_is_never_read_beyond_its_bound(root: Path) -> None:
    """A file that is really as large as it says, so that only the bound keeps it out of memory."""
    at = ONE.index(b"PK\1\2")

    class Large(io.BytesIO):
        """Remembers how much was asked of it in one piece."""

        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.taken = max(self.taken, size or 0)
            return super().read(size)

    file = Large(ONE[:at] + bytes(65 << 20) + patched(ONE[ONE.index(END) :], END_SIZE, "<L", 65 << 20, END))

    with pytest.raises(ArchiveError, match="a directory of at most 67108864 bytes, got 68157440"):
        ZipReader(file, BOUNDS)

    assert file.taken < 1 << 20


def test_a_small_overlap_is_bounded_by_bytes(root: Path) -> None:
    """Below the ratio's floor the tree's size is what counts."""
    with pytest.raises(ArchiveError, match="more than 50000 bytes"):
        unpack(overlapping(6), root, replace(BOUNDS, total_bytes=50_000))


DOS, NTFS, VFAT, UNIX, READ_ONLY, DOS_DIRECTORY = 0, 10, 14, 3, 0x01, 0x10


def foreign(name: str, system: int = DOS, attributes: int = 0x20) -> zipfile.ZipInfo:
    """An entry as a program on Windows writes it: its system, and attributes of DOS where Unix has a mode."""
    info = entry(name)
    info.create_system, info.external_attr = system, attributes
    return info


@pytest.mark.parametrize("system", [DOS, NTFS, VFAT])
def test_an_archive_of_windows_has_directories_and_programs(root: Path, system: int) -> None:
    """Backslashes part names, a DOS attribute makes a directory, and each file may be executed, also one marked read-only."""
    data = zipped(
        (foreign("bin~", system, DOS_DIRECTORY), b""),
        (foreign("bin~run.sh", system), b"#!/bin/sh"),
        (foreign("a~b~c.txt", system, READ_ONLY), b"c"),
        (foreign("plain/d", system), b"d"),
        (foreign("empty", system, DOS_DIRECTORY), b""),
    )
    unpack(data.replace(b"~", b"\\"), root)
    assert tree_of(root) == {
        "a": "directory 755",
        "a/b": "directory 755",
        "a/b/c.txt": "file 755 c",
        "bin": "directory 755",
        "bin/run.sh": "file 755 #!/bin/sh",
        "empty": "directory 755",
        "plain": "directory 755",
        "plain/d": "file 755 d",
    }


def test_a_backslash_of_unix_is_a_letter(root: Path) -> None:
    """Where names may hold one it parts nothing; a file without a mode there is no program."""
    info = entry("a~b")
    info.create_system, info.external_attr = UNIX, READ_ONLY  # zipfile gives 600 to one without any
    unpack(zipped((info, b"x")).replace(b"~", b"\\"), root)
    assert tree_of(root) == {"a\\b": "file 644 x"}


@pytest.mark.parametrize("name", ["..~planted", "~planted", "a~..~..~planted"])
def test_a_backslash_leads_nowhere_else(root: Path, name: str) -> None:
    """What a backslash stands for is checked as what it stands for."""
    with pytest.raises(ArchiveError, match=r"'\.\.' in a name|an absolute name"):
        unpack(zipped((foreign(name), b"x")).replace(b"~", b"\\"), root)


def test_modes_that_an_archive_of_windows_has_are_kept(root: Path) -> None:
    """Some programs write Unix's modes beside a system without them."""
    info = foreign("a", attributes=(stat.S_IFREG | 0o640) << 16)
    unpack(zipped((info, b"x")), root)
    assert tree_of(root) == {"a": "file 640 x"}
