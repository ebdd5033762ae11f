"""One disk: an ext4 image, loop-mounted in the depot, whose byte limit is a reserve of its file system.

ext4 subtracts ``reserved_clusters`` (Documentation/ABI/testing/sysfs-fs-ext4) from the available space, but not from the
free space. Nobody can allocate the reserve, root included, and delayed allocation respects it. So a limit is one number that
can be raised and lowered, also below what is used, and ``df`` inside is right. The kernel forgets the number with the mount,
so it is set again whenever a disk is taken up (docs/containers.md, "Disk limits").
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from container import linux
from container.errors import ContainerError

#: The block size of every image. A cluster is one block.
BLOCK_BYTES: Final = 4096
BASE: Final = ".base"
FILE_SYSTEM: Final = "ext4"
#: The inode tables of a fresh sparse file are zeros; the kernel need not write them in the background.
_OPTIONS: Final = "noinit_itable"
_LEAST_RESERVE_BYTES: Final = 16 << 10
#: Four times the default reserve of the kernel on large file systems.
_MOST_RESERVE_BYTES: Final = 64 << 20


class DiskError(ContainerError, RuntimeError):
    """A disk could not be made or changed; the text says which part and why."""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """How much the container has written, without the overhead of the file system."""

    bytes: int
    inodes: int


def reserve_bytes(limit_bytes: int) -> int:
    """The space that is reserved beyond a limit. Pure.

    The kernel counts the blocks for delayed data in advance, but takes the blocks of the extent tree from the reserve.
    Without a reserve a full disk loses data.
    """
    return min(max(limit_bytes // 100, _LEAST_RESERVE_BYTES), _MOST_RESERVE_BYTES)


def most_bytes(usable_bytes: int) -> int:
    """The largest limit that fits into ``usable_bytes`` together with its reserve. Pure."""
    most = min(
        max(usable_bytes * 100 // 101, usable_bytes - _MOST_RESERVE_BYTES),
        usable_bytes - _LEAST_RESERVE_BYTES,
    )
    return max(0, most)


def mount_image(device: str, target: Path) -> None:
    """Mounts the image that is on a loop device. OSError."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOATIME
    linux.mount(device, target, FILE_SYSTEM, flags, _OPTIONS)


class Disk:
    """One mounted image. ``path`` is where it is mounted."""

    def __init__(self, image: Path, path: Path) -> None:
        self.image = image
        self.path = path
        self._empty: tuple[int, int] | None = None

    def is_mounted(self) -> bool:
        """False: somebody unmounted it, or this manager runs in another mount namespace than the former one."""
        return os.path.ismount(self.path)

    def usage(self) -> DiskUsage:
        """The usage by one statvfs(2), without a walk of the tree. OSError: the disk is not mounted."""
        seen = os.statvfs(self.path)
        base_bytes, base_inodes = self._base()
        used_bytes = (seen.f_blocks - seen.f_bfree) * seen.f_frsize
        return DiskUsage(max(0, used_bytes - base_bytes), max(0, seen.f_files - seen.f_ffree - base_inodes))

    def _base(self) -> tuple[int, int]:
        """The bytes and inodes that an empty image uses, from the record of the template. FileNotFoundError: not mounted."""
        if self._empty is None:
            words = (self.path / BASE).read_text().split()
            self._empty = int(words[0]), int(words[1])
        return self._empty

    def resize(self, limit_bytes: int | None) -> None:
        """Sets the byte limit. None: the largest for which the image was formatted.

        A limit below the usage is no error; nothing more can be written then. DiskError: the limit is larger than the one
        for which the image was formatted at create.
        """
        base_bytes, _ = self._base()
        seen = os.statvfs(self.path)
        usable = seen.f_blocks * seen.f_frsize - base_bytes
        most = most_bytes(usable)
        if limit_bytes is None:
            limit_bytes = most
        if limit_bytes > most:
            raise DiskError(
                f"limits.disk_bytes: expected at most {most} (fixed at create), got {limit_bytes}"
            )
        knob = _limit_file(self.path)
        fd = os.open(knob, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str((usable - limit_bytes) // seen.f_frsize).encode())
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(knob)) from e
        finally:
            os.close(fd)

    def take_up(self, limit_bytes: int | None) -> None:
        """Sets the limit again after a restart of the manager, since the kernel forgets it with a mount. DiskError."""
        self.resize(limit_bytes)

    async def destroy(self) -> None:
        """Unmounts the image and removes it. Idempotent. OSError."""
        await asyncio.to_thread(self._destroy)

    def _destroy(self) -> None:
        linux.unmount(self.path)
        self.image.unlink(missing_ok=True)


def _limit_file(mount_point: Path) -> Path:
    """The file of the limit, which the kernel names after the loop device.

    DiskError: the directory is on no loop device. Without this check, if the disk is not mounted, the limit of a file
    system of the host would be set.
    """
    device = mount_point.stat().st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    if not name.startswith("loop"):
        raise DiskError(f"{mount_point}: expected a loop device, the disk is on {name}")
    return Path("/sys/fs/ext4", name, "reserved_clusters")
