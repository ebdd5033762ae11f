"""CopyIn and CopyOut: trees between the host and a container, with the path rules of rsync (docs/warden.md, "Copies").

A tar stream goes through a pipe. On the way in, this process packs the host's files, which it trusts. On the way out, the
stream is hostile: whoever is root inside chooses the tar that packs it. So `extract` makes files, directories and links only,
each below the target by a descriptor, and never follows a link.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
import tarfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, BinaryIO, Final

from container.container import Container
from container.errors import ContainerError
from container.spec import JobSpec
from container.warden.errors import WardenError
from wsh.units import MIB

_ENV: Final = ("PATH=/usr/bin:/bin", "LANG=C.UTF-8")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK_BYTES: Final = MIB
#: A header of a name or link may be that long; more is no path.
_DEPTH: Final = 256


async def copy_in(container: Container, source: str, target: str) -> None:
    """Copies a file or directory of the host into the container, as vcap. WardenError."""
    path = Path(source)
    if not path.is_absolute() or not os.path.lexists(path):
        raise WardenError(f"src_path: {source} does not exist on the host")
    is_tree = path.is_dir() and (source.endswith("/") or not path.is_symlink())
    if is_tree:
        directory, name = target, "." if source.endswith("/") else path.name
    elif target.endswith("/") or await _is_directory(container, target):
        directory, name = target, path.name
    else:
        directory, name = os.path.split(target)
    made = await container.run(JobSpec(("/bin/mkdir", "-p", "--", directory or "/"), _ENV, cwd="/"))
    if not made.status.ok:
        raise WardenError(f"dst_path: {made.stderr.decode(errors='replace').strip()}")
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    await _both(
        _with_fd(container.copy_in(read_fd, directory or "/"), read_fd),
        asyncio.to_thread(_pack, write_fd, path, name),
    )


async def _is_directory(container: Container, path: str) -> bool:
    asked = await container.run(JobSpec(("/bin/sh", "-c", '[ -d "$1" ]', "sh", path), _ENV, cwd="/"))
    return asked.status.ok


def _pack(fd: int, path: Path, name: str) -> None:
    """Writes the tar stream and closes the descriptor."""

    def chosen(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        tar.inodes = {}  # type: ignore[attr-defined]  # hard links become copies
        return member if member.isreg() or member.isdir() or member.issym() else None

    with (
        os.fdopen(fd, "wb") as file,
        contextlib.suppress(BrokenPipeError),
    ):  # tar inside reports why it stopped
        with tarfile.open(
            fileobj=file, mode="w|", format=tarfile.GNU_FORMAT, errors="surrogateescape"
        ) as tar:
            tar.add(path if path.is_symlink() and name != "." else path.resolve(), name, filter=chosen)


async def copy_out(container: Container, source: str, target: str, owner: str | None) -> None:
    """Copies a file or directory of the container to the host. It belongs to root there, or to ``owner``. WardenError."""
    wanted = Path(target)
    if not wanted.is_absolute():
        raise WardenError(f"dst_path: expected an absolute path, got {target}")
    skipped = 0
    if source.endswith("/"):  # the contents alone
        directory, source, skipped, rename = wanted, os.path.normpath(source), 1, None
    elif target.endswith("/") or wanted.is_dir() or await _is_directory(container, source):
        directory, rename = wanted, None
    else:
        directory, rename = wanted.parent, wanted.name
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    await _both(
        _with_fd(container.copy_out(source, write_fd), write_fd),
        asyncio.to_thread(_extract_from, read_fd, directory, skipped, rename),
    )
    if owner is not None:
        argv = ("chown", "-R", "-h", "--", owner, str(wanted))
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WardenError(f"owner: {done.stderr.strip()}")


async def _with_fd(work: Coroutine[Any, Any, None], fd: int) -> None:
    try:
        await work
    finally:
        os.close(fd)


async def _both(inside: Coroutine[Any, Any, None], outside: Coroutine[Any, Any, None]) -> None:
    """Waits for both ends of a pipe: each ends when the other has closed it. The error from inside says more."""
    for error in await asyncio.gather(inside, outside, return_exceptions=True):
        if isinstance(error, WardenError):
            raise error
        if isinstance(error, ContainerError | OSError | tarfile.TarError):
            raise WardenError(f"copy: {error}") from error
        if isinstance(error, BaseException):
            raise error


def _extract_from(fd: int, target: Path, skipped: int, rename: str | None) -> None:
    with os.fdopen(fd, "rb") as file:
        root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            extract(file, root, skipped=skipped, rename=rename)
        finally:
            os.close(root)


def extract(stream: BinaryIO, root_fd: int, *, skipped: int = 0, rename: str | None = None) -> None:
    """Makes the members of a tar stream below a directory. Devices, pipes and sockets are left out, and so are the set-id bits.

    ``skipped``: how many parts at the beginning of each name are cut off. ``rename``: the name of the only file.
    WardenError: a name leads out of the directory; OSError; tarfile.TarError.
    """
    with tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape") as tar:
        for member in tar:
            parts = _parts(member.name)[skipped:]
            if rename is not None and parts:
                parts = [rename, *parts[1:]]
            if parts:
                _make(tar, member, root_fd, parts, skipped)
            tar.members.clear()  # type: ignore[attr-defined]  # of a stream it would keep all of them


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or len(parts) > _DEPTH:
        raise WardenError(f"the container sent a name that leads out of the target: {name[:100]!r}")
    return parts


def _make(
    tar: tarfile.TarFile, member: tarfile.TarInfo, root_fd: int, parts: list[str], skipped: int
) -> None:
    with contextlib.ExitStack() as opened:
        parent = _open_parent(opened, root_fd, parts)
        name, mode = parts[-1], stat.S_IMODE(member.mode) & 0o777
        if member.isdir():
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            made = os.open(name, _DIRECTORY, dir_fd=parent)
            opened.callback(os.close, made)
            os.fchmod(made, mode)
            return
        if not (member.isreg() or member.issym() or member.islnk()):
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.islnk():
            former = _parts(member.linkname)[skipped:]
            where = _open_parent(opened, root_fd, former)
            os.link(former[-1], name, src_dir_fd=where, dst_dir_fd=parent, follow_symlinks=False)
        else:
            source = tar.extractfile(member)
            assert source is not None
            with os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=parent), "wb") as file:
                while piece := source.read(_CHUNK_BYTES):
                    file.write(piece)
                os.fchmod(file.fileno(), mode)


def _open_parent(opened: contextlib.ExitStack, root_fd: int, parts: list[str]) -> int:
    """The directory of the last part; missing ones are made. OSError ELOOP, ENOTDIR: a link or a file is in the way."""
    parent = root_fd
    for part in parts[:-1]:
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o755, dir_fd=parent)
        parent = os.open(part, _DIRECTORY, dir_fd=parent)
        opened.callback(os.close, parent)
    return parent
