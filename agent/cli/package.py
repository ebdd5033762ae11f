"""Packs a directory into the zip that staging takes. Modes, times and links are kept; ignore.py decides what is left out.

`scan` lists the files first. It is cheap, and its sizes decide whether to pack at all. `write_zip` then packs them.
"""

from __future__ import annotations

import os
import stat
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agent.cli import ui
from agent.cli.ignore import Ignores

# The range of a DOS time: from 1980 to 2107, in steps of two seconds.
EARLIEST_S, LATEST_S = 315532800, 4354819198
_UNIX_TIME = 0x5455  # the id of the extra field with the time in seconds, in UTC
_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True)
class PackedFile:
    path: Path
    name: str
    info: os.stat_result


@dataclass(frozen=True, slots=True)
class PackList:
    """The files that a push packs. ``ignore_files``: which of `.cfignore` and `.gitignore` were read."""

    entries: tuple[PackedFile, ...]
    files: int
    content_bytes: int
    ignore_files: tuple[str, ...]


def scan(directory: Path, progress: Callable[[int, int], None], limit_bytes: int) -> PackList:
    """Lists files, links and directories of the app, in order. Sockets, pipes and devices are left out.

    ``progress`` gets the number of files and bytes so far. Failure: a directory cannot be read, or there are more than
    ``limit_bytes``.
    """
    ignores = Ignores(directory)
    found: list[PackedFile] = []
    files = content_bytes = 0
    try:
        for entry in _walk(directory, ignores):
            found.append(entry)
            if not stat.S_ISDIR(entry.info.st_mode):
                files += 1
                content_bytes += entry.info.st_size
            if content_bytes > limit_bytes:
                raise ui.Failure(
                    f"cannot push {directory}",
                    f"it has more than {ui.size(limit_bytes)} of files",
                    "is it the right directory? leave files out with a .cfignore",
                    ui.USAGE,
                )
            progress(files, content_bytes)
    except OSError as error:
        raise ui.Failure(f"cannot push {directory}", f"{error.filename}: {error.strerror}") from error
    return PackList(tuple(found), files, content_bytes, tuple(sorted(ignores.read)))


def _walk(top: Path, ignores: Ignores) -> Iterator[PackedFile]:
    """Yields each directory before its entries, sorted by name. Without recursion: a path may be 2,000 directories deep."""
    waiting = _names(top, "", ignores)
    while waiting:
        name = waiting.pop()
        path = top / name
        info = path.lstat()
        is_directory = stat.S_ISDIR(info.st_mode)
        if ignores.leave_out(name, is_directory=is_directory):
            continue
        if is_directory or stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
            yield PackedFile(path, name, info)
        if is_directory:
            waiting += _names(top, name, ignores)


def _names(top: Path, folder: str, ignores: Ignores) -> list[str]:
    """The entries of a directory, in reverse order."""
    ignores.enter(folder)
    names = sorted(os.listdir(top / folder), reverse=True)  # noqa: PTH208  (names that are no UTF-8 as well)
    return [f"{folder}/{name}" if folder else name for name in names]


def write_zip(entries: tuple[PackedFile, ...], out: IO[bytes], progress: Callable[[int], None]) -> None:
    """``progress`` gets the number of bytes read so far. Failure: a file cannot be read any more."""
    done = 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for entry in entries:
            info = _zip_info(entry)
            if stat.S_ISDIR(entry.info.st_mode):
                archive.writestr(info, b"")
                continue
            try:
                if stat.S_ISLNK(entry.info.st_mode):
                    archive.writestr(info, os.fsencode(entry.path.readlink()))
                    continue
                with entry.path.open("rb") as source, archive.open(info, "w") as sink:
                    while block := source.read(_BLOCK):
                        sink.write(block)
                        done += len(block)
                        progress(done)
            except OSError as error:
                if error.filename is None:  # the archive could not be written
                    raise
                raise ui.Failure("cannot pack", f"{error.filename}: {error.strerror}") from error


class _AnyName(zipfile.ZipInfo):
    """Stores a name that is not UTF-8 as its bytes, without the flag for UTF-8."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        raw = os.fsencode(self.filename)
        try:
            raw.decode("ascii")
        except UnicodeDecodeError:
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError:
                return raw, self.flag_bits
            return raw, self.flag_bits | 0x800
        return raw, self.flag_bits


def _zip_info(entry: PackedFile) -> zipfile.ZipInfo:
    mode, mtime_s = entry.info.st_mode, int(entry.info.st_mtime)
    is_directory = stat.S_ISDIR(mode)
    dos_time = time.gmtime(min(max(mtime_s, EARLIEST_S), LATEST_S))
    info = _AnyName(entry.name + ("/" if is_directory else ""), dos_time[:6])
    info.create_system = 3  # Unix
    info.external_attr = (mode & 0xFFFF) << 16 | (0x10 if is_directory else 0)
    if -(1 << 31) <= mtime_s < 1 << 31:
        info.extra = struct.pack("<HHBl", _UNIX_TIME, 5, 1, mtime_s)
    if stat.S_ISREG(mode):
        info.compress_type = zipfile.ZIP_DEFLATED
        info.file_size = entry.info.st_size
    return info
