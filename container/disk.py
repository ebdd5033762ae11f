"""A disk limit without kernel quota: an ext4 image, loop-mounted in the depot, and a ballast file in it.

The image is a sparse copy of a template (one per inode limit, made once by mkfs.ext4, no journal: after a host
crash an upper is thrown away anyhow). It is formatted far larger than any limit; what a limit leaves over is taken
up by a preallocated ballast file beside the uppers, so that the limit can change both ways while the container runs. The
template is all ballast: a new disk cuts its share off (1 ms), where preallocating the rest took 13. The loop device goes
with its last mount (autoclear). House.md, "Disk limit"; figures in libraries.md 12.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
BALLAST: Final = "ballast"

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_AUTOCLEAR: Final = 4
_MS_NOSUID, _MS_NODEV, _MS_NOATIME = 2, 4, 1024
_MNT_DETACH: Final = 2
_COPY_CHUNK: Final = 4 * MIB

_libc = ctypes.CDLL(None, use_errno=True)


class DiskError(RuntimeError):
    """A disk could not be made or changed; the text names what and why."""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What the container has written, without the file system's own and the ballast."""

    bytes: int
    inodes: int


def free_bytes(path: Path) -> int:
    """What an unprivileged writer could still write on the file system of ``path``."""
    seen = os.statvfs(path)
    return seen.f_bavail * seen.f_frsize


def _mount(source: str, target: Path) -> None:
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    if _libc.mount(source.encode(), os.fsencode(target), b"ext4", flags, b"") != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"mount {source} on {target}")


def _unmount(target: Path) -> None:
    """Detached: who still holds a descriptor keeps the file system until then."""
    if _libc.umount2(os.fsencode(target), _MNT_DETACH) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):  # not mounted, not there
            raise OSError(number, os.strerror(number), f"umount {target}")


def _ensure_node(number: int) -> str:
    """/dev/loopN of a /dev without devtmpfs is made by hand."""
    path = f"/dev/loop{number}"
    if not Path(path).exists():
        os.mknod(path, 0o60660, os.makedev(7, number))
    return path


@contextmanager
def _loop_device(image: Path) -> Iterator[str]:
    """A free loop device with ``image`` on it. It detaches itself with its last user: mount it inside."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    device = -1
    try:
        while True:  # another process may take the number between the two calls
            path = _ensure_node(fcntl.ioctl(control, _LOOP_CTL_GET_FREE))
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            # struct loop_config: fd, block_size, struct loop_info64 (flags at 52), reserved
            config = bytearray(304)
            struct.pack_into("=II", config, 0, backing, 0)
            struct.pack_into("=I", config, 8 + 52, _LO_FLAGS_AUTOCLEAR)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, bytes(config))
                break
            except OSError as e:
                os.close(device)
                device = -1
                if e.errno != errno.EBUSY:
                    raise OSError(e.errno, e.strerror, f"attach {image} to {path}") from e
        yield path
    finally:
        for fd in (device, control, backing):
            if fd >= 0:
                os.close(fd)


def _copy_sparse(source: Path, target: Path) -> None:
    """Data by data, hole by hole. ``target`` must not exist."""
    with source.open("rb") as src, target.open("xb") as dst:
        size = os.fstat(src.fileno()).st_size
        os.truncate(dst.fileno(), size)
        at = 0
        while at < size:
            try:
                start = os.lseek(src.fileno(), at, os.SEEK_DATA)
            except OSError as e:
                if e.errno == errno.ENXIO:
                    return
                raise
            at = os.lseek(src.fileno(), start, os.SEEK_HOLE)
            done = start
            while done < at:
                moved = os.copy_file_range(
                    src.fileno(), dst.fileno(), min(at - done, _COPY_CHUNK), done, done
                )
                if moved == 0:
                    raise DiskError(f"copy {source}: it became shorter")
                done += moved


class Disk:
    """One mounted image. ``path`` is where it is mounted."""

    def __init__(self, image: Path, path: Path) -> None:
        self.image = image
        self.path = path
        self._empty: tuple[int, int] | None = None

    def usage(self) -> DiskUsage:
        seen = os.statvfs(self.path)
        used = (seen.f_blocks - seen.f_bfree) * seen.f_frsize - self._ballast_bytes()
        base_bytes, base_inodes = self._base()
        return DiskUsage(max(0, used - base_bytes), max(0, seen.f_files - seen.f_ffree - base_inodes))

    def _base(self) -> tuple[int, int]:
        """What an empty image counts as used, noted in the template."""
        if self._empty is None:
            words = (self.path / ".base").read_text().split()
            self._empty = int(words[0]), int(words[1])
        return self._empty

    def _ballast_bytes(self) -> int:
        try:
            return (self.path / BALLAST).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def resize(self, limit_bytes: int | None) -> None:
        """Sets the byte limit. Below what is used already: nothing more can be written (no error)."""
        fd = os.open(self.path / BALLAST, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if limit_bytes is None:
                os.ftruncate(fd, 0)
                return
            seen = os.statvfs(self.path)
            # not f_bfree: the kernel keeps some clusters for itself (ext4's s_resv_clusters, 16 MiB here)
            free = seen.f_bavail * seen.f_frsize + self._ballast_bytes()
            wanted = max(0, free - max(0, limit_bytes - self.usage().bytes))
            wanted -= wanted % seen.f_frsize
            size = os.fstat(fd).st_size  # all of it is allocated
            os.ftruncate(fd, min(wanted, size))
            while wanted > size:
                try:
                    os.posix_fallocate(fd, size, wanted - size)
                    return
                except OSError as e:
                    if e.errno != errno.ENOSPC:
                        raise
                    # extent blocks of the ballast itself
                    wanted = max(0, wanted - 16 * seen.f_frsize)
        finally:
            os.close(fd)

    async def destroy(self) -> None:
        """Unmounts and removes the image. Idempotent."""
        await asyncio.to_thread(self._destroy)

    def _destroy(self) -> None:
        _unmount(self.path)
        self.image.unlink(missing_ok=True)


class Disks:
    """Makes disks from templates that it keeps in ``templates_dir``."""

    #: Formatted sizes; the smallest that is twice the limit is taken (ballast costs 0.4 ms a GiB). Sparse on the host.
    SIZES_BYTES: Final = (16 << 30, 128 << 30, 1 << 40)

    def __init__(self, templates_dir: Path) -> None:
        self._templates_dir = templates_dir
        self._making = asyncio.Lock()

    async def create(self, image: Path, mount_point: Path, limit_bytes: int | None, inodes: int) -> Disk:
        """A fresh disk mounted at ``mount_point`` (which must exist). On an error nothing is left of it."""
        wanted = self.SIZES_BYTES[-1] if limit_bytes is None else 2 * limit_bytes
        size = next((size for size in self.SIZES_BYTES if size >= wanted), None)
        if size is None:
            raise DiskError(f"limits.disk_bytes: at most {self.SIZES_BYTES[-1] // 2}, got {limit_bytes}")
        template = await self._template(size, inodes)
        return await asyncio.to_thread(self._create, template, image, mount_point, limit_bytes)

    @staticmethod
    def _create(template: Path, image: Path, mount_point: Path, limit_bytes: int | None) -> Disk:
        try:
            _copy_sparse(template, image)
            with _loop_device(image) as device:
                _mount(device, mount_point)
            disk = Disk(image, mount_point)
            disk.resize(limit_bytes)
        except BaseException:
            _unmount(mount_point)
            image.unlink(missing_ok=True)
            raise
        return disk

    async def reopen(self, image: Path, mount_point: Path) -> Disk:
        """The disk that a former manager made there; it may be gone in part, ``destroy`` works all the same."""
        return Disk(image, mount_point)

    async def _template(self, size_bytes: int, inodes: int) -> Path:
        path = self._templates_dir / f"ext4-{size_bytes // MIB}m-{inodes}i-ballast.img"
        async with self._making:
            if not path.exists():
                await asyncio.to_thread(self._make_template, path, size_bytes, inodes)
        return path

    def _make_template(self, path: Path, size_bytes: int, inodes: int) -> None:
        new = path.with_suffix(f".{os.getpid()}.new")
        try:
            with new.open("xb") as file:
                os.truncate(file.fileno(), size_bytes)
            # 11 inodes are the file system's own; the ballast, .base and the four work directories are ours
            argv = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-N", str(inodes + 24),
                    "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", str(new)]  # fmt: skip
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise DiskError(f"mkfs.ext4 for {inodes} inodes: {done.stderr.strip() or done.returncode}")
            self._fill(new)
            new.rename(path)
        finally:
            new.unlink(missing_ok=True)

    def _fill(self, image: Path) -> None:
        """What every disk begins with: no lost+found, what an empty one counts as used, and ballast to the brim."""
        point = image.with_suffix(".mount")
        point.mkdir(exist_ok=True)
        try:
            with _loop_device(image) as device:
                _mount(device, point)
            try:
                (point / "lost+found").rmdir()
                seen = os.statvfs(point)
                base = (seen.f_blocks - seen.f_bfree) * seen.f_frsize + seen.f_frsize
                (point / ".base").write_text(f"{base} {seen.f_files - seen.f_ffree + 2}\n")
                Disk(image, point).resize(0)
            finally:
                _unmount(point)
        finally:
            point.rmdir()
