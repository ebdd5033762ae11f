"""A zip reader: `zipfile` for the directory, our own rules for everything else.

A zip's directory is at its end, so the file must lie on disk. Names are `orig_filename`, since zipfile cuts the
other one at a NUL. Encrypted members, methods beside stored and deflated, a directory over 64 MiB: refused.
"""

from __future__ import annotations

import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from agent.droplets.archive import ArchiveError, Bounds, Kind, Member, shown
from agent.droplets.tar import CHUNK, make_member

DIRECTORY_BYTES = 64 << 20
_KINDS = {0: Kind.FILE, stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}


def _check_directory_size(file: BinaryIO) -> None:
    """zipfile reads the directory whole, so its size is looked at first (APPNOTE 4.3.16)."""
    end = file.seek(0, 2)
    file.seek(max(0, end - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise ArchiveError("zip: no directory at the end: truncated, or no zip at all")
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if size > DIRECTORY_BYTES:
        raise ArchiveError(f"zip: a directory of {size} bytes, at most {DIRECTORY_BYTES} are taken")


class ZipReader:
    """Iterate for members; between two of them ``read`` gives the contents of the one before."""

    def __init__(self, file: BinaryIO, bounds: Bounds) -> None:
        _check_directory_size(file)
        self._bounds = bounds
        self._current: zipfile.ZipExtFile | None = None
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as e:
            raise ArchiveError(f"zip: {e}") from e

    def _translated(self, call: Callable[[], bytes]) -> bytes:
        try:
            return call()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as e:
            raise ArchiveError(f"zip: {e}") from e

    def read(self, limit: int) -> bytes:
        current = self._current
        return self._translated(lambda: current.read(min(limit, CHUNK))) if current else b""

    def __iter__(self) -> Iterator[Member]:
        infos = self._zip.infolist()
        if len(infos) > self._bounds.members:
            raise ArchiveError(f"more than {self._bounds.members} members")
        declared = sum(info.file_size for info in infos)
        if declared > self._bounds.total_bytes:
            raise ArchiveError(f"more than {self._bounds.total_bytes} bytes")
        packed = sum(info.compress_size for info in infos)
        if declared > self._bounds.ratio_from_bytes and declared > self._bounds.ratio * packed:
            raise ArchiveError(f"compressed more than {self._bounds.ratio} to 1")
        for info in infos:
            yield self._member(info)

    def _open(self, info: zipfile.ZipInfo) -> zipfile.ZipExtFile:
        try:
            opened = self._zip.open(info)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError) as e:
            raise ArchiveError(f"zip: {e}") from e
        assert isinstance(opened, zipfile.ZipExtFile)
        return opened

    def _member(self, info: zipfile.ZipInfo) -> Member:
        name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437", "surrogateescape")
        if info.flag_bits & 0x1:
            raise ArchiveError(f"{shown(name)}: encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(f"{shown(name)}: compressed by method {info.compress_type}")
        unix = info.external_attr >> 16
        kind = _KINDS.get(stat.S_IFMT(unix))
        if kind is None:
            raise ArchiveError(f"{shown(name)}: neither file, directory nor link (mode {unix:o})")
        if name.endswith(b"/"):
            kind = Kind.DIRECTORY
        if info.file_size and kind is Kind.DIRECTORY:
            raise ArchiveError(f"{shown(name)}: a directory with contents")
        self._current = self._open(info) if kind is not Kind.DIRECTORY else None
        target = b""
        if kind is Kind.SYMLINK:
            target = self.read(CHUNK) if info.file_size < CHUNK else bytes(CHUNK)
            self._current = None
        mode = stat.S_IMODE(unix) or (0o755 if kind is Kind.DIRECTORY else 0o644)
        size = info.file_size if kind is Kind.FILE else 0
        return make_member(kind, name, mode=mode, mtime_s=_seconds(info), size_bytes=size, target=target)


def _seconds(info: zipfile.ZipInfo) -> int:
    """Zip times are local times of nobody knows where: read as UTC; impossible ones are the epoch."""
    try:
        return int(time.mktime((*info.date_time, 0, 0, 0))) - time.timezone
    except (ValueError, OverflowError):
        return 0
