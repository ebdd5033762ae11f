"""One disk: an ext4 image, loop-mounted in the depot, whose byte limit is the file system's own reserve.

``reserved_clusters`` (Documentation/ABI/testing/sysfs-fs-ext4) is taken from what is available and not from what is free:
nobody can allocate it, root included, and delayed allocation respects it. So a limit is one number, both ways, also below what is
used, and ``df`` inside is right. The kernel forgets it with the mount, so it is set again whenever a disk is taken up.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from container import linux

#: What every image is formatted with; a cluster is one of these.
BLOCK_BYTES: Final = 4096
BASE: Final = ".base"
FILE_SYSTEM: Final = "ext4"
#: The inode tables of a fresh sparse file are zeros; the kernel need not write them in the background.
_OPTIONS: Final = "noinit_itable"
_LEAST_RESERVE_BYTES: Final = 16 << 10
#: Four times what the kernel takes by default from large file systems.
_MOST_RESERVE_BYTES: Final = 64 << 20


class DiskError(RuntimeError):
    """A disk could not be made or changed; the text names what and why."""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What the container has written, without the file system's own."""

    bytes: int
    inodes: int


def reserve_bytes(limit_bytes: int) -> int:
    """What is kept beyond a limit. Pure.

    The kernel writes back delayed data into blocks that were counted for it, and takes those of the extent tree
    from the reserve: with none, a full disk loses data.
    """
    return min(max(limit_bytes // 100, _LEAST_RESERVE_BYTES), _MOST_RESERVE_BYTES)


def most_bytes(room_bytes: int) -> int:
    """The largest limit that leaves its own reserve of what there is room for. Pure."""
    most = min(
        max(room_bytes * 100 // 101, room_bytes - _MOST_RESERVE_BYTES), room_bytes - _LEAST_RESERVE_BYTES
    )
    return max(0, most)


def mount_image(device: str, target: Path) -> None:
    """Mounts the image on a loop device, as every disk is mounted. OSError."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOATIME
    linux.mount(device, target, FILE_SYSTEM, flags, _OPTIONS)


class Disk:
    """One mounted image. ``path`` is where it is mounted."""

    def __init__(self, image: Path, path: Path) -> None:
        self.image = image
        self.path = path
        self._empty: tuple[int, int] | None = None

    def is_mounted(self) -> bool:
        """Not, when the manager came back in another mount namespace, or somebody unmounted it."""
        return os.path.ismount(self.path)

    def usage(self) -> DiskUsage:
        seen = os.statvfs(self.path)
        base_bytes, base_inodes = self._base()
        used_bytes = (seen.f_blocks - seen.f_bfree) * seen.f_frsize
        return DiskUsage(max(0, used_bytes - base_bytes), max(0, seen.f_files - seen.f_ffree - base_inodes))

    def _base(self) -> tuple[int, int]:
        """What an empty image counts as used, noted in the template. FileNotFoundError: it is not mounted."""
        if self._empty is None:
            words = (self.path / BASE).read_text().split()
            self._empty = int(words[0]), int(words[1])
        return self._empty

    def resize(self, limit_bytes: int | None) -> None:
        """Set the byte limit. Below what is used already: nothing more can be written (no error).

        DiskError: more than the image was formatted for at create. None: all of that.
        """
        base_bytes, _ = self._base()
        seen = os.statvfs(self.path)
        room = seen.f_blocks * seen.f_frsize - base_bytes
        most = most_bytes(room)
        if limit_bytes is None:
            limit_bytes = most
        if limit_bytes > most:
            raise DiskError(f"limits.disk_bytes: at most {most} here (fixed at create), got {limit_bytes}")
        knob = _knob(self.path.stat().st_dev)
        fd = os.open(knob, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str((room - limit_bytes) // seen.f_frsize).encode())
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(knob)) from e
        finally:
            os.close(fd)

    def take_up(self, limit_bytes: int | None) -> None:
        """After a restart of the manager: the limit as it was, whatever has been mounted anew meanwhile."""
        self.resize(limit_bytes)

    async def destroy(self) -> None:
        """Unmounts and removes the image. Idempotent."""
        await asyncio.to_thread(self._destroy)

    def _destroy(self) -> None:
        linux.unmount(self.path)
        self.image.unlink(missing_ok=True)


def _knob(device: int) -> Path:
    """Of the file system on a loop device, which the kernel names after it; never one of the host's own."""
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    if not name.startswith("loop"):
        raise DiskError(f"expected a loop device, the disk is on {name}")
    return Path("/sys/fs/ext4", name, "reserved_clusters")
