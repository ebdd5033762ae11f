"""Helpers of the disk tests: they fill disks, and read what the host reports about them."""

from __future__ import annotations

import contextlib
import errno
import os
from itertools import count
from pathlib import Path

from container.disk import Disk, Disks

MIB = 1 << 20
BLOCK = 4096


def fill(path: Path, at_most: int = 1 << 40) -> int:
    """Writes until the disk says that it is full, also to a single block; how many bytes went in."""
    written, chunk = 0, b"x" * MIB
    with path.open("ab", buffering=0) as file:
        while chunk and written < at_most:
            try:
                written += file.write(chunk[: at_most - written])
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
                chunk = chunk[BLOCK:] if len(chunk) <= 16 * BLOCK else chunk[: len(chunk) // 2]
    return written


def make_files(directory: Path) -> int:
    """Makes files until the disk says that there is no room; how many."""
    for made in count():
        try:
            (directory / str(made)).touch()
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            return made
    raise AssertionError


def loops(image: Path) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if str(image) in path.read_text():
                found.append(path.parent.parent.name)
    return found


def df(disk: Disk) -> tuple[int, int, int]:
    """Size, used and available in bytes, as df(1) has them."""
    seen = os.statvfs(disk.path)
    unit = seen.f_frsize
    return seen.f_blocks * unit, (seen.f_blocks - seen.f_bfree) * unit, seen.f_bavail * unit


class Shelf:
    """Where a test's disks lie; each is destroyed in the end."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.templates = base / "templates"
        self.templates.mkdir()
        self.disks = Disks(self.templates)
        self.made: list[Disk] = []

    def place(self, name: str) -> tuple[Path, Path]:
        mount_point = self.base / name
        mount_point.mkdir()
        return self.base / f"{name}.img", mount_point

    async def create(
        self,
        limit_bytes: int | None,
        *,
        inodes: int = 5000,
        name: str = "disk",
        max_bytes: int | None = None,
    ) -> Disk:
        disk = await self.disks.create(*self.place(name), limit_bytes, inodes, max_bytes=max_bytes)
        self.made.append(disk)
        return disk
