"""Templates of disks, and the disks that are copied from them.

mkfs.ext4 makes one template for each size and inode limit. To make a disk, the template is copied in this process and mounted
through a loop device, which takes 2 ms. A template is sparse. It has no journal, because an upper is thrown away after a
crash of the host anyway.

An image is as large as its limit, plus the overhead of mkfs (200,000 inodes cost 49 MiB), plus the reserve. So ``df`` inside
shows the limit as the size. An image cannot grow later: EXT4_IOC_RESIZE_FS needs CAP_SYS_RESOURCE, which many hosts lack. So
a caller that may raise the limit later gives the highest limit at create (``max_bytes``).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from container import linux
from container.disk.ballast import BallastDisk
from container.disk.image import BASE, BLOCK_BYTES, FILE_SYSTEM, Disk, DiskError, mount_image, reserve_bytes
from container.disk.sparse import copy_sparse

#: The largest limit: 1 TiB with its reserve. A disk without a limit has this size; the image is sparse on the host.
MAX_BYTES: Final = 1023 << 30
#: Sizes between n and 2n bytes. This keeps the number of templates low, and a disk at most 3.1 % larger than needed.
_STEPS: Final = 32
#: Space for the root directory and `.base`, and a block that some kernels count differently.
_FURNITURE_BYTES: Final = 3 * BLOCK_BYTES
_INODE_BYTES: Final = 256
#: Inodes of the file system itself (11), of the overlay directories, and of the files that the launch writes.
_MORE_INODES: Final = 64
_FORMAT_ATTEMPTS: Final = 10


def formatted_bytes(limit_bytes: int) -> int:
    """The size that ``df`` shows for a disk whose limit may become ``limit_bytes``: at most 5 % more. Pure."""
    wanted = limit_bytes + reserve_bytes(limit_bytes) + _FURNITURE_BYTES
    steps = (
        _STEPS if wanted >= 2 << 20 else 2 * _STEPS
    )  # in small images a few blocks are some per cent already
    step = max(BLOCK_BYTES, (1 << (wanted.bit_length() - 1)) // steps)
    return -(-wanted // step) * step


class Disks:
    """Makes disks from templates that it keeps in ``templates_dir``."""

    def __init__(self, templates_dir: Path) -> None:
        self._templates_dir = templates_dir
        self._making = asyncio.Lock()

    async def create(
        self,
        image: Path,
        mount_point: Path,
        limit_bytes: int | None,
        inodes: int,
        *,
        max_bytes: int | None = None,
    ) -> Disk:
        """Makes a disk and mounts it at ``mount_point``, which must exist. If it fails, nothing of it is left.

        ``limit_bytes`` None: no limit. ``max_bytes``: the highest limit that may be set later; None: ``limit_bytes``.
        DiskError: too large, or mkfs refused; OSError.
        """
        most = MAX_BYTES if limit_bytes is None else max(limit_bytes, max_bytes or 0)
        if most > MAX_BYTES:
            raise DiskError(f"limits.disk_bytes: expected at most {MAX_BYTES}, got {most}")
        template = await self._template(formatted_bytes(most), inodes)
        return await asyncio.to_thread(self._create, template, image, mount_point, limit_bytes)

    @staticmethod
    def _create(template: Path, image: Path, mount_point: Path, limit_bytes: int | None) -> Disk:
        copy_sparse(template, image)
        try:
            with linux.loop_device(image) as device:
                mount_image(device, mount_point)
            disk = Disk(image, mount_point)
            disk.resize(limit_bytes)
        except BaseException:
            linux.unmount(mount_point)
            image.unlink(missing_ok=True)
            raise
        return disk

    async def reopen(self, image: Path, mount_point: Path) -> Disk:
        """The disk that a former manager made. ``destroy`` works also if parts of it are gone."""
        kind = BallastDisk if BallastDisk.is_one(mount_point) else Disk
        return kind(image, mount_point)

    async def _template(self, size_bytes: int, inodes: int) -> Path:
        path = self._templates_dir / f"ext4-{size_bytes // BLOCK_BYTES}b-{inodes}i.img"
        async with self._making:
            if not path.exists():
                await asyncio.to_thread(self._make_template, path, size_bytes, inodes)
        return path

    def _make_template(self, path: Path, size_bytes: int, inodes: int) -> None:
        """Makes a template under a temporary name and renames it, since another manager may make the same one."""
        fd, name = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".new", dir=self._templates_dir)
        os.close(fd)
        image = Path(name)
        try:
            mount_fd = _format(image, size_bytes, inodes)
            try:
                _furnish(image, mount_fd)
            finally:
                os.close(mount_fd)
            image.rename(path)
        finally:
            image.unlink(missing_ok=True)


def _format(image: Path, size_bytes: int, inodes: int) -> int:
    """Formats an image so that ``size_bytes`` are left for files. Returns a descriptor of a mount of it. DiskError.

    The overhead of mkfs depends on how it treats the last block group, so the length is found by trial: format, measure,
    correct. The size is not always met exactly: 1 MiB with 200,000 inodes becomes 172 KiB larger.
    """
    slack = max(size_bytes // 512, 16 * BLOCK_BYTES)
    length = size_bytes + inodes * _INODE_BYTES + 64 * BLOCK_BYTES
    too_short = 0
    why = ""
    for _ in range(_FORMAT_ATTEMPTS):
        length -= length % BLOCK_BYTES
        why = _mkfs(image, length, inodes)
        if why:  # too short for that many inodes
            too_short = max(too_short, length)
            length += length // 64
            continue
        with linux.loop_device(image) as device:
            mount_fd = linux.mount_detached(device, FILE_SYSTEM)
        seen = os.statvfs(f"/proc/self/fd/{mount_fd}")
        missing = size_bytes - seen.f_blocks * seen.f_frsize
        if missing <= 0 and (-missing <= slack or length + missing <= too_short):
            return mount_fd
        os.close(mount_fd)
        if missing > 0:
            too_short = max(too_short, length)
        length += missing
    why = why or f"no length of the image gives that size, {_FORMAT_ATTEMPTS} were tried"
    raise DiskError(f"mkfs.ext4 for {size_bytes} bytes and {inodes} inodes: {why}")


def _mkfs(image: Path, length_bytes: int, inodes: int) -> str:
    """Formats the image. Returns the error text; empty: it succeeded."""
    os.truncate(image, 0)
    os.truncate(image, length_bytes)
    argv = ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(BLOCK_BYTES), "-I", str(_INODE_BYTES),
            "-O", "^has_journal,^resize_inode", "-N", str(inodes + _MORE_INODES),
            "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", str(image)]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit {done.returncode}")


def _furnish(image: Path, mount_fd: int) -> None:
    """Removes lost+found, and records the bytes and inodes that an empty disk uses."""
    top = Path(f"/proc/self/fd/{mount_fd}")
    (top / "lost+found").rmdir()
    seen = os.statvfs(top)
    base_bytes = (seen.f_blocks - seen.f_bfree + 1) * seen.f_frsize
    (top / BASE).write_text(f"{base_bytes} {seen.f_files - seen.f_ffree + 1}\n")
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # on a full host, writes through a loop device would be lost without an error
        linux.sync_file_system(fd, str(image))
    finally:
        os.close(fd)
