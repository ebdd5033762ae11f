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
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432  # the same on every architecture
_CLOEXEC: Final = 1
_SET_STRING, _CREATE = 1, 6  # enum fsconfig_command
_COPY_CHUNK: Final = 4 * MIB
_LOOP_ATTEMPTS: Final = 1000

_libc = ctypes.CDLL(None, use_errno=True)


class DiskError(RuntimeError):
    """A disk could not be made or changed; the text names what and why."""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What the container has written, without the file system's own and the ballast."""

    bytes: int
    inodes: int


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _mount(source: str, target: Path) -> None:
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    _checked(
        _libc.mount(source.encode(), os.fsencode(target), b"ext4", flags, b""), f"mount {source} on {target}"
    )


def _mount_detached(source: str) -> int:
    """A mount that is nowhere but in this descriptor, and goes with it, also when this process is killed."""
    what = f"mount {source}"
    context = _checked(_libc.syscall(_SYS_FSOPEN, b"ext4", _CLOEXEC), what)
    try:
        for command, key, value in ((_SET_STRING, b"source", source.encode()), (_CREATE, None, None)):
            _checked(_libc.syscall(_SYS_FSCONFIG, context, command, key, value, 0), what)
        return _checked(_libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, 0), what)
    finally:
        os.close(context)


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
        with suppress(FileExistsError):  # somebody else needs it as well
            os.mknod(path, 0o60660, os.makedev(7, number))
    return path


@contextmanager
def _loop_device(image: Path) -> Iterator[str]:
    """A free loop device with ``image`` on it. It detaches itself with its last user: mount it inside."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    device = -1
    try:
        for attempt in range(_LOOP_ATTEMPTS):
            path = _ensure_node(fcntl.ioctl(control, _LOOP_CTL_GET_FREE))
            try:
                device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                fcntl.ioctl(device, _LOOP_CONFIGURE, _loop_config(backing))
                break
            except OSError as e:
                if device >= 0:
                    os.close(device)
                    device = -1
                # another process may take or remove the number between the two calls
                if e.errno not in (errno.EBUSY, errno.ENXIO, errno.ENODEV) or attempt + 1 == _LOOP_ATTEMPTS:
                    raise OSError(e.errno, e.strerror, f"attach {image} to {path}") from e
        yield path
    finally:
        for fd in (device, control, backing):
            if fd >= 0:
                os.close(fd)


def _loop_config(backing_fd: int) -> bytes:
    """struct loop_config: fd, block_size, struct loop_info64 (its flags at 52), reserved."""
    config = bytearray(304)
    struct.pack_into("=II", config, 0, backing_fd, 0)
    struct.pack_into("=I", config, 8 + 52, _LO_FLAGS_AUTOCLEAR)
    return bytes(config)


def _copy_sparse(source: Path, target: Path) -> None:
    """Data by data, hole by hole; the two may be on different file systems. ``target`` must not exist."""
    with source.open("rb", buffering=0) as src, target.open("xb", buffering=0) as dst:
        try:
            os.truncate(dst.fileno(), os.fstat(src.fileno()).st_size)
            for start, end in _extents(src.fileno()):
                at = start
                while at < end:
                    data = os.pread(src.fileno(), min(end - at, _COPY_CHUNK), at)
                    if not data:
                        raise DiskError(f"copy {source}: it became shorter")
                    at += os.pwrite(dst.fileno(), data, at)
        except BaseException:
            target.unlink()
            raise


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file holds data: from, to."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


class Disk:
    """One mounted image. ``path`` is where it is mounted."""

    def __init__(self, image: Path, path: Path) -> None:
        self.image = image
        self.path = path
        self._empty: tuple[int, int] | None = None
        self._resizing = threading.Lock()  # each resize is a thread's, and measures before it acts

    def is_mounted(self) -> bool:
        """Not, when the manager came back in another mount namespace, or somebody unmounted it."""
        return os.path.ismount(self.path)

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
        return (self.path / BALLAST).stat().st_blocks * 512

    def resize(self, limit_bytes: int | None) -> None:
        """Sets the byte limit. Below what is used already: nothing more can be written (no error).

        DiskError: more than the image was formatted for at create. None: all of that.
        """
        with self._resizing:
            # without O_CREAT: where the image is not mounted there is no ballast, and none is wanted
            fd = os.open(self.path / BALLAST, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._resize(fd, limit_bytes)
            finally:
                os.close(fd)

    def _resize(self, ballast_fd: int, limit_bytes: int | None) -> None:
        seen = os.statvfs(self.path)
        # not f_bfree: the kernel keeps some clusters for itself (ext4's s_resv_clusters, 16 MiB here)
        free = seen.f_bavail * seen.f_frsize + self._ballast_bytes()
        used = self.usage().bytes
        if limit_bytes is None:
            limit_bytes = free + used
        if limit_bytes > free + used:
            raise DiskError(
                f"limits.disk_bytes: at most {free + used} here (fixed at create), got {limit_bytes}"
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
                # extent blocks of the ballast itself; or the app took some meanwhile
                wanted -= 16 * seen.f_frsize
                os.ftruncate(ballast_fd, max(wanted, size))

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
        template = await self._template(size, inodes, full=limit_bytes is not None)
        return await asyncio.to_thread(self._create, template, image, mount_point, limit_bytes)

    @staticmethod
    def _create(template: Path, image: Path, mount_point: Path, limit_bytes: int | None) -> Disk:
        _copy_sparse(template, image)
        try:
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

    async def _template(self, size_bytes: int, inodes: int, *, full: bool) -> Path:
        """Full of ballast, of which a new disk cuts its share off; or empty, for one without a limit."""
        kind = "full" if full else "empty"
        path = self._templates_dir / f"ext4-{size_bytes // MIB}m-{inodes}i-{kind}.img"
        async with self._making:
            if not path.exists():
                await asyncio.to_thread(self._make_template, path, size_bytes, inodes, full)
        return path

    def _make_template(self, path: Path, size_bytes: int, inodes: int, full: bool) -> None:
        """Made aside and renamed: another manager may be at the same."""
        fd, name = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".new", dir=self._templates_dir)
        image = Path(name)
        try:
            os.truncate(fd, size_bytes)
            # 11 inodes are the file system's own; the ballast, .base and the four work directories are ours
            argv = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-N", str(inodes + 24),
                    "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", name]  # fmt: skip
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise DiskError(f"mkfs.ext4 for {inodes} inodes: {done.stderr.strip() or done.returncode}")
            with _loop_device(image) as device:
                mount_fd = _mount_detached(device)
            try:
                _furnish(image, mount_fd, limit_bytes=0 if full else None)
            finally:
                os.close(mount_fd)
            image.rename(path)
        finally:
            os.close(fd)
            image.unlink(missing_ok=True)


def _furnish(image: Path, mount_fd: int, limit_bytes: int | None) -> None:
    """What every disk begins with: no lost+found, what an empty one counts as used, and its ballast."""
    top = Path(f"/proc/self/fd/{mount_fd}")
    (top / "lost+found").rmdir()
    (top / BALLAST).touch(mode=0o600)
    seen = os.statvfs(top)
    base_bytes = (seen.f_blocks - seen.f_bfree + 1) * seen.f_frsize
    (top / ".base").write_text(f"{base_bytes} {seen.f_files - seen.f_ffree + 1}\n")
    Disk(image, top).resize(limit_bytes)
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # on a full host, writes through a loop device are lost in silence otherwise
        _checked(_libc.syncfs(fd), f"syncfs of {image}")
    finally:
        os.close(fd)
