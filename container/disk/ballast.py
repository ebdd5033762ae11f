"""Disks of an older release: formatted far larger than any limit, with a preallocated file that takes up the rest.

No such disk is made any more. An upgrade keeps the containers, so their old disks must still work: the limit, the usage,
and a change of the limit.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Final

from container.disk.image import Disk, DiskError, DiskUsage

BALLAST: Final = "ballast"


class BallastDisk(Disk):
    """A disk with a ballast file. ``df`` inside shows the formatted size, and the ballast as used."""

    def __init__(self, image: Path, path: Path) -> None:
        super().__init__(image, path)
        self._resizing = threading.Lock()  # a resize runs in a thread, and measures before it acts

    @staticmethod
    def is_one(path: Path) -> bool:
        """True if a mounted disk has a ballast file."""
        return (path / BALLAST).exists()

    def usage(self) -> DiskUsage:
        """The usage without the ballast. OSError: the disk is not mounted."""
        seen = super().usage()
        return DiskUsage(max(0, seen.bytes - self._ballast_bytes()), seen.inodes)

    def take_up(self, limit_bytes: int | None) -> None:
        """Does nothing: the limit is stored in the image."""

    def _ballast_bytes(self) -> int:
        return (self.path / BALLAST).stat().st_blocks * 512

    def resize(self, limit_bytes: int | None) -> None:
        """As `Disk.resize`, by a change of the length of the ballast."""
        with self._resizing:
            # Without O_CREAT: if the image is not mounted, no ballast may be made in the directory.
            fd = os.open(self.path / BALLAST, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._resize(fd, limit_bytes)
            finally:
                os.close(fd)

    def _resize(self, ballast_fd: int, limit_bytes: int | None) -> None:
        seen = os.statvfs(self.path)
        # Not f_bfree: the kernel keeps some clusters for itself (reserved_clusters, 16 MiB here).
        free = seen.f_bavail * seen.f_frsize + self._ballast_bytes()
        used = self.usage().bytes
        if limit_bytes is None:
            limit_bytes = free + used
        if limit_bytes > free + used:
            raise DiskError(
                f"limits.disk_bytes: expected at most {free + used} (fixed at create), got {limit_bytes}"
            )
        wanted = free - max(0, limit_bytes - used)
        wanted -= wanted % seen.f_frsize
        size = os.fstat(ballast_fd).st_size  # all of it is allocated
        os.ftruncate(ballast_fd, min(wanted, size))
        while wanted > size:
            try:
                os.posix_fallocate(ballast_fd, size, wanted - size)
                return
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
                # The extent blocks of the ballast, or a job, took some space meanwhile.
                wanted -= 16 * seen.f_frsize
                os.ftruncate(ballast_fd, max(wanted, size))
