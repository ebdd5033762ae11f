"""A zip reader on top of `zipfile`, with rules of its own for names, kinds, sizes and modes.

A zip's directory is at its end, so the archive must be a file and not a pipe. Names are taken from `orig_filename`, since zipfile
cuts `filename` at a NUL. Refused are encrypted members, methods other than stored and deflated, wrong sizes, and a
directory of more than 64 MiB.

Members from systems without Unix modes get the execute bit, because such an archive does not say which files are scripts.
"""

from __future__ import annotations

import calendar
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from agent.droplets.archive import ArchiveError, Bounds, Kind, Member, shown
from agent.droplets.tar import CHUNK, make_member

DIRECTORY_BYTES = 64 << 20
_KINDS = {0: Kind.FILE, stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}
_UTF8, _ENCRYPTED = 0x800, 0x1
#: APPNOTE.TXT 4.4.2: MS-DOS, OS/2, NTFS, VFAT. These systems have no Unix modes, and a backslash separates directories.
_WITHOUT_MODES = frozenset({0, 6, 10, 14})
_DOS_DIRECTORY = 0x10
_UNIX_TIME = 0x5455


@contextmanager
def _translated() -> Iterator[None]:
    """Translates what zipfile raises for an invalid file into ArchiveError: its own errors, those of the codecs, and those caused by
    offsets outside the file."""
    try:
        yield
    except ArchiveError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
        OSError,
    ) as e:
        raise ArchiveError(f"zip: {e}") from e


class _Careful:
    """A file that limits single reads. zipfile reads the whole directory at once, with whatever size the archive declares."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size_bytes = file.seek(0, 2)
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        count = max(0, self.size_bytes - self._file.tell()) if size < 0 else size
        if count > DIRECTORY_BYTES:
            raise ArchiveError(f"zip: expected a directory of at most {DIRECTORY_BYTES} bytes, got {count}")
        return self._file.read(size)


class ZipReader:
    """Iterate to get the members. Before the next one, ``read`` returns the contents of the current one. Raises ArchiveError."""

    def __init__(self, file: BinaryIO, bounds: Bounds) -> None:
        self._bounds = bounds
        self._current: zipfile.ZipExtFile | None = None
        self._name, self._left = b"", 0
        with _translated():
            careful = _Careful(file)
            self._size_bytes = careful.size_bytes
            self._zip = zipfile.ZipFile(cast(BinaryIO, careful))

    def read(self, limit: int) -> bytes:
        """The next bytes of the current file; empty at its end. Its size must be the one in the zip's directory."""
        if self._current is None:
            return b""
        with _translated():
            data = self._current.read(min(limit, CHUNK))
        self._left -= len(data)
        if self._left < 0 or (not data and self._left):
            raise ArchiveError(f"{shown(self._name)}: its size differs from that in the zip's directory")
        return data

    def __iter__(self) -> Iterator[Member]:
        infos = self._zip.infolist()
        if len(infos) > self._bounds.members:
            raise ArchiveError(f"more than {self._bounds.members} members")
        declared = sum(info.file_size for info in infos)
        if declared > self._bounds.total_bytes:
            raise ArchiveError(f"more than {self._bounds.total_bytes} bytes")
        # compare with the size of the file, not with the sum of the packed sizes, since members may overlap
        if declared > self._bounds.ratio_from_bytes and declared > self._bounds.ratio * self._size_bytes:
            raise ArchiveError(f"compressed more than {self._bounds.ratio} to 1")
        for info in infos:
            yield self._member(info)

    def _open(self, info: zipfile.ZipInfo, name: bytes) -> None:
        with _translated():
            self._current = cast(zipfile.ZipExtFile, self._zip.open(info))
        self._name, self._left = name, info.file_size

    def _member(self, info: zipfile.ZipInfo) -> Member:
        name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437", "surrogateescape")
        foreign = info.create_system in _WITHOUT_MODES
        if foreign:
            name = name.replace(b"\\", b"/")
        if info.flag_bits & _ENCRYPTED:
            raise ArchiveError(f"{shown(name)}: encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(f"{shown(name)}: compressed by method {info.compress_type}")
        unix = info.external_attr >> 16
        kind = _KINDS.get(stat.S_IFMT(unix))
        if kind is None:
            raise ArchiveError(
                f"{shown(name)}: expected a file, directory or symbolic link, got one of mode {unix:o}"
            )
        if name.endswith(b"/") or (foreign and not unix and info.external_attr & _DOS_DIRECTORY):
            kind = Kind.DIRECTORY
        if info.file_size and kind is Kind.DIRECTORY:
            raise ArchiveError(f"{shown(name)}: a directory with contents")
        self._current, target = None, b""
        if kind is not Kind.DIRECTORY:
            self._open(info, name)
        if kind is Kind.SYMLINK:
            target = self._target(name, info.file_size)
        mode = stat.S_IMODE(unix) or (0o755 if foreign or kind is Kind.DIRECTORY else 0o644)
        size = info.file_size if kind is Kind.FILE else 0
        return make_member(kind, name, mode=mode, mtime_s=_seconds(info), size_bytes=size, target=target)

    def _target(self, name: bytes, size: int) -> bytes:
        if size >= CHUNK:
            raise ArchiveError(
                f"{shown(name)}: expected a link target of less than {CHUNK} bytes, got {size}"
            )
        target = self.read(CHUNK)
        self.read(1)  # the end of the contents: zipfile verifies the checksum here
        self._current = None
        return target


def _seconds(info: zipfile.ZipInfo) -> int:
    """The modification time in seconds since 1970.

    The extra field 0x5455 has it in UTC. Without that field there is only a local time of an unknown zone, in steps of two
    seconds: it is taken as UTC, and an impossible one as 0.
    """
    extra, at = info.extra, 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == _UNIX_TIME and size >= 5 and at + 9 <= len(extra) and extra[at + 4] & 1:
            (seconds,) = struct.unpack_from("<i", extra, at + 5)
            return int(seconds)
        at += 4 + size
    try:
        return calendar.timegm((*info.date_time, 0, 0, 0))
    except (ValueError, OverflowError):
        return 0
