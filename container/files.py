"""Reads and writes files of a container from outside, without following a link out of it.

openat2 resolves paths with the container's root as their root (RESOLVE_IN_ROOT). So ``..`` and absolute links stay inside,
also if a job changes the tree meanwhile. A file must also lie on one of the container's own mounts (its root, its home). A
link may lead to /proc or /sys inside, where files look regular but give the manager access with the host's rights.

Whole trees are moved as tar streams by a job inside. The manager itself never walks a tree that a job can change.
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
#: An absolute path and a fixed environment, since a job could put its own tar into the PATH.
_TAR: Final = "/bin/tar"
_ENV: Final = ("PATH=/usr/bin:/bin", "LANG=C.UTF-8")
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class NotAFile(ContainerError, OSError):
    """The path names something that is not a regular file of the container's own."""


class FilesError(ContainerError, RuntimeError):
    """tar inside the container failed; the text has its standard error or its status."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file to write inside. ``mode``: the permission bits."""

    path: str
    data: bytes
    mode: int = 0o644
    user: int = User.VCAP


@dataclass(frozen=True, slots=True)
class Tree:
    """The root of paths, and the ids of the mounts on which they may end. The maker must hold these mounts open."""

    root_fd: int
    mounts: frozenset[int]

    def open(self, path: str, flags: int) -> int:
        """Opens a path that lies on one of the mounts. Use flags that read or write only with O_DIRECTORY (see `read_file`)."""
        fd = linux.openat2(self.root_fd, path, flags, resolve=_RESOLVE)
        try:
            if linux.mount_id(fd) not in self.mounts:
                raise NotAFile(errno.EXDEV, "not on a mount of the container's own", path)
        except BaseException:
            os.close(fd)
            raise
        return fd


def open_home(root_fd: int, path: str) -> int:
    """Opens the root of the home when a container is made or taken up. No link is followed."""
    return linux.openat2(
        root_fd, path, os.O_PATH | os.O_DIRECTORY, resolve=_RESOLVE | linux.RESOLVE_NO_SYMLINKS
    )


def read_file(tree: Tree, path: str, max_bytes: int, offset: int = 0) -> bytes:
    """Up to ``max_bytes`` of a regular file. Other kinds are refused without an open for reading. NotAFile, OSError."""
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
    """Writes a file, and replaces an existing one. Missing directories are made for the same user. OSError."""
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
    """Opens a directory, and makes what is missing of its path."""
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
            # By descriptor: a job could put a hard link to a file of another user in its place.
            made = os.open(directory.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.fchown(made, owner, owner)
            finally:
                os.close(made)
    finally:
        os.close(parent)
    return tree.open(str(directory), flags)


def unpack_job(destination: str, user: int) -> JobSpec:
    """A job in which tar unpacks its stdin. All files belong to ``user``; owners in the stream are ignored."""
    argv = (_TAR, "-x", "-o", "-f", "-", "-C", destination)
    return JobSpec(argv, env=_ENV, user=user, cwd="/")


def pack_job(path: str, user: int) -> JobSpec:
    """A job in which tar packs ``path`` (a tree or a file) to stdout. Names begin with the last part of ``path``."""
    place = PurePosixPath(path)
    name = f"./{place.name}" if place.name else "."
    argv = (_TAR, "-c", "-f", "-", "-C", str(place.parent), name)
    return JobSpec(argv, env=_ENV, user=user, cwd="/")


def bytes_fd(data: bytes, owner: int) -> int:
    """A sealed memfd with ``data``. ``owner`` may open it again by /proc/self/fd, and nobody can change it.

    It is no pipe: if the input is longer than a pipe holds, a job would lose the rest when its manager dies.
    """
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.fchown(fd, owner, owner)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
