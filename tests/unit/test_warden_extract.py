"""What comes out of a container as a tar stream, and what is made of it on the host."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from container.warden.errors import WardenError
from container.warden.extract import extract

pytestmark = pytest.mark.unit


def stream_of(*members: tuple[str, dict[str, Any], bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w|") as tar:
        for name, fields, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in fields.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
    return io.BytesIO(out.getvalue())


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root").mkdir()
    fd = os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


SYMLINK, LINK, DEVICE, FIFO = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", {}, b"x")],
        [("/etc/evil", {}, b"x")],
        [("a/../../evil", {}, b"x")],
        [("out", {"type": SYMLINK, "linkname": "../.."}, b""), ("out/evil", {}, b"x")],
        [("out", {"type": SYMLINK, "linkname": "/"}, b""), ("out", {"type": tarfile.DIRTYPE}, b"")],
        [("link", {"type": LINK, "linkname": "../secret"}, b"")],
        [
            ("out", {"type": SYMLINK, "linkname": ".."}, b""),
            ("l", {"type": LINK, "linkname": "out/secret"}, b""),
        ],
        [("/".join("a" * 300), {}, b"x")],
    ],
)
def test_a_stream_cannot_lead_out_of_the_target(root: int, tmp_path: Path, members: Any) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises((WardenError, OSError)):
        extract(stream_of(*members), root)
    assert not list(tmp_path.rglob("evil"))
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_a_stream_makes_files_directories_and_links_only(root: int, tmp_path: Path) -> None:
    """A file replaces a link instead of writing through it. Set-id bits go."""
    (tmp_path / "outside").write_text("untouched")
    extract(
        stream_of(
            ("./d", {"type": tarfile.DIRTYPE, "mode": 0o2755}, b""),
            ("./d/f", {"mode": 0o6755}, b"data"),
            ("./d/l", {"type": LINK, "linkname": "./d/f"}, b""),
            ("./s", {"type": SYMLINK, "linkname": str(tmp_path / "outside")}, b""),
            ("./s", {"mode": 0o600}, b"new"),
            ("./null", {"type": DEVICE, "devmajor": 1, "devminor": 3}, b""),
            ("./pipe", {"type": FIFO}, b""),
        ),
        root,
    )
    made = tmp_path / "root"
    assert sorted(str(path.relative_to(made)) for path in made.rglob("*")) == ["d", "d/f", "d/l", "s"]
    assert (made / "d/f").stat().st_mode & 0o7777 == 0o755
    assert (made / "d").stat().st_mode & 0o7777 == 0o755
    assert (made / "d/l").read_bytes() == b"data"
    assert (made / "s").read_bytes() == b"new"
    assert (tmp_path / "outside").read_text() == "untouched"


def test_a_rename_holds_for_every_name_and_every_link(root: int, tmp_path: Path) -> None:
    """What lies beside the wanted name on the host is neither overwritten nor linked to."""
    for name in ("neighbour", "secret"):
        (tmp_path / "root" / name).write_text("of the host")
    extract(stream_of(("neighbour", {}, b"evil")), root, rename="wanted")
    assert (tmp_path / "root/neighbour").read_text() == "of the host"
    assert (tmp_path / "root/wanted").read_text() == "evil"
    extract(
        stream_of(("a", {}, b"1"), ("a", {"type": LINK, "linkname": "secret"}, b"")), root, rename="wanted"
    )
    assert (tmp_path / "root/secret").stat().st_nlink == 1
    assert (tmp_path / "root/wanted").read_text() == "1"


def header(kind: bytes, size: int, name: str = "x", pax: dict[str, str] | None = None) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    member.pax_headers = pax or {}
    return member.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


class Endless(io.RawIOBase):
    """Some bytes, and then zeros without an end."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)
        self.sent_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._data.read(len(buffer)) or bytes(len(buffer))
        buffer[: len(data)] = data
        self.sent_bytes += len(data)
        assert self.sent_bytes < 4 << 20, "it reads on and on"
        return len(data)


@pytest.mark.parametrize(
    "data",
    [
        header(tarfile.GNUTYPE_LONGNAME, 1 << 32),
        header(tarfile.GNUTYPE_LONGLINK, 1 << 32),
        header(tarfile.XHDTYPE, 1 << 32),
        header(tarfile.XGLTYPE, 1024),
        header(tarfile.GNUTYPE_SPARSE, 0),
        header(tarfile.REGTYPE, -512),
        header(tarfile.REGTYPE, 0, pax={"GNU.sparse.size": "9" * 18, "GNU.sparse.map": "0,0"}),
        header(tarfile.REGTYPE, 0, pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
        header(tarfile.REGTYPE, 0, pax={"path": "a\0b"}),
        header(tarfile.XHDTYPE, 512) + (b"9" * 5000)[:512],
        header(tarfile.XHDTYPE, 5120) + b"9" * 5000 + b" a=" + bytes(117),
        header(tarfile.GNUTYPE_LONGNAME, 0) * 3000,
        header(tarfile.LNKTYPE, 0),
    ],
    ids=lambda data: repr(data[156:157]) + str(len(data)),
)
def test_a_stream_can_neither_take_the_memory_nor_the_disk(root: int, tmp_path: Path, data: bytes) -> None:
    """A header that claims gigabytes is refused before they are read; a number or name that is none is an error."""
    with pytest.raises((WardenError, tarfile.TarError)):
        extract(io.BufferedReader(Endless(data)), root)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0
