"""A directory as the zip that staging takes: modes and links kept, what `.cfignore` names left out."""

from __future__ import annotations

import fnmatch
import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# Never part of an app: history, caches, and what only works where it was made.
ALWAYS_OUT = (".git", ".hg", ".svn", ".cfignore", "__pycache__", ".venv", ".DS_Store", "*.pyc")
EARLIEST = (1980, 1, 1, 0, 0, 0)  # the zip format knows no older time


@dataclass(frozen=True, slots=True)
class Entry:
    path: Path
    name: str
    info: os.stat_result


def ignore_patterns(directory: Path) -> tuple[str, ...]:
    file = directory / ".cfignore"
    lines = file.read_text().splitlines() if file.is_file() else []
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def is_ignored(name: str, patterns: tuple[str, ...]) -> bool:
    """`name` is relative, with slashes. A pattern with a slash in it is from the top, any other anywhere."""
    ignored = any(fnmatch.fnmatch(part, p) for part in name.split("/") for p in ALWAYS_OUT)
    for pattern in patterns:
        wanted = pattern.startswith("!")
        bare = pattern.removeprefix("!").rstrip("/")
        if "/" in bare:
            top = bare.lstrip("/")
            hit = (
                fnmatch.fnmatch(name, top) or name.startswith(top + "/") or fnmatch.fnmatch(name, top + "/*")
            )
        else:
            hit = any(fnmatch.fnmatch(part, bare) for part in name.split("/"))
        if hit:
            ignored = not wanted
    return ignored


def entries(directory: Path) -> Iterator[Entry]:
    """Files, links and directories of the app, in order; sockets, pipes and devices are left out."""
    patterns = ignore_patterns(directory)
    for folder, folders, files in os.walk(directory):
        folders.sort()
        relative = Path(folder).relative_to(directory)
        kept = []
        for name in sorted(folders + files):
            path = Path(folder) / name
            inside = (relative / name).as_posix()
            if is_ignored(inside, patterns):
                continue
            info = path.lstat()
            if stat.S_ISDIR(info.st_mode):
                kept.append(name)
            if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode) or stat.S_ISDIR(info.st_mode):
                yield Entry(path, inside, info)
        folders[:] = kept


def write_zip(directory: Path, out: IO[bytes]) -> tuple[int, int]:
    """(files, bytes of content)."""
    files = total = 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for entry in entries(directory):
            mode = entry.info.st_mode
            info = zipfile.ZipInfo(entry.name + ("/" if stat.S_ISDIR(mode) else ""), EARLIEST)
            info.external_attr = (mode & 0xFFFF) << 16 | (0x10 if stat.S_ISDIR(mode) else 0)
            if stat.S_ISDIR(mode):
                archive.writestr(info, b"")
                continue
            files += 1
            if stat.S_ISLNK(mode):
                archive.writestr(info, os.fsencode(entry.path.readlink()))
                continue
            total += entry.info.st_size
            info.compress_type = zipfile.ZIP_DEFLATED
            info.file_size = entry.info.st_size
            with entry.path.open("rb") as source, archive.open(info, "w") as sink:
                while block := source.read(1 << 18):
                    sink.write(block)
    return files, total
