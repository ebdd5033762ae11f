"""Files of a container from outside, never following a link out of it.

Paths are resolved by openat2 with the container's root as the end of the world (RESOLVE_IN_ROOT), so ``..``
and absolute links stay inside, whatever a job does to the tree meanwhile. What is found must lie on a mount
of the container's own (its root, its home): /proc and /sys inside answer the manager with the host's rights,
and look like regular files. Whole trees are moved as tar streams by a job inside: the manager does not walk a
tree that a job can change.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from container import linux, users
from container.errors import ContainerError
from container.pools import IdLease
from container.spec import JobSpec, User
from wsh.units import MIB

_RESOLVE: Final = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
#: By its path and with an environment of ours: what lies in a PATH inside is the job's to choose.
_TAR: Final = "/bin/tar"
_ENV: Final = ("PATH=/usr/bin:/bin", "LANG=C.UTF-8")
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class NotAFile(ContainerError, OSError):
    """The path names something that is not a regular file of the container's own."""


class FilesError(ContainerError, RuntimeError):
    """tar inside the container failed; the text is its standard error."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file to write inside; ``mode`` are permission bits."""

    path: str
    data: bytes
    mode: int = 0o644
    user: int = User.VCAP


@dataclass(frozen=True, slots=True)
class Tree:
    """Where paths begin, and the mounts that they may lead to (mount ids; whoever makes a `Tree` holds them)."""

    root_fd: int
    mounts: frozenset[int]

    def open(self, path: str, flags: int) -> int:
        """A descriptor of what is on one of the mounts. Flags that read or write only with O_DIRECTORY: see `read_file`."""
        fd = linux.openat2(self.root_fd, path, flags, resolve=_RESOLVE)
        try:
            if linux.mount_id(fd) not in self.mounts:
                raise NotAFile(errno.EXDEV, "not on a mount of the container's own", path)
        except BaseException:
            os.close(fd)
            raise
        return fd


def open_home(root_fd: int, path: str) -> int:
    """The home's root, when a container is made or taken up: no link of a job leads elsewhere."""
    return linux.openat2(
        root_fd, path, os.O_PATH | os.O_DIRECTORY, resolve=_RESOLVE | linux.RESOLVE_NO_SYMLINKS
    )


def read_file(tree: Tree, path: str, max_bytes: int, offset: int = 0) -> bytes:
    """Up to ``max_bytes`` of a regular file. Anything else is never opened, only looked at."""
    place = tree.open(path, os.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise NotAFile(errno.EINVAL, "not a regular file", path)
        fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(place)
    with os.fdopen(fd, "rb", buffering=0) as file:
        file.seek(offset)
        parts, left = [], max_bytes
        while left > 0 and (data := file.read(min(left, MIB))):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)


def write_file(tree: Tree, entry: FileEntry, ids: IdLease) -> None:
    """Write a file, replacing what is there; missing directories are made for the same user."""
    owner = users.host_id(ids.first, entry.user)
    path = PurePosixPath("/") / entry.path
    parent = _open_directories(tree, path.parent, owner)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path.name, flags, 0o600, dir_fd=parent)
        with os.fdopen(fd, "wb") as file:
            file.write(entry.data)
            os.fchown(fd, owner, owner)
            os.fchmod(fd, entry.mode)
    finally:
        os.close(parent)


def _open_directories(tree: Tree, directory: PurePosixPath, owner: int) -> int:
    """A descriptor of the directory; what is missing of it is made."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        return tree.open(str(directory), flags)
    except FileNotFoundError:
        if directory == directory.parent:
            raise
    parent = _open_directories(tree, directory.parent, owner)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory.name, 0o755, dir_fd=parent)
            # By descriptor: a job could put a hard link to another's file in its place.
            made = os.open(directory.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.fchown(made, owner, owner)
            finally:
                os.close(made)
    finally:
        os.close(parent)
    return tree.open(str(directory), flags)


def unpack_job(destination: str, user: int) -> JobSpec:
    """tar reads the stream on stdin. Owners are not restored: all belongs to ``user``."""
    argv = (_TAR, "-x", "-o", "-f", "-", "-C", destination)
    return JobSpec(argv, env=_ENV, user=user, cwd="/")


def pack_job(path: str, user: int) -> JobSpec:
    """tar writes the tree below ``path`` (or the file) to stdout, names beginning with its last part."""
    place = PurePosixPath(path)
    name = f"./{place.name}" if place.name else "."
    argv = (_TAR, "-c", "-f", "-", "-C", str(place.parent), name)
    return JobSpec(argv, env=_ENV, user=user, cwd="/")


def bytes_fd(data: bytes, owner: int) -> int:
    """A memfd with ``data`` at its start; ``owner`` may open it again by /proc/self/fd, and nobody can change it.

    Not a pipe: a job whose input is longer than a pipe would lose the rest of it with its manager.
    """
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.fchown(fd, owner, owner)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
