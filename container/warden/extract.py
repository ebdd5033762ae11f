"""Makes files on the host from a tar stream that a container sent.

The stream is hostile: whoever is root inside chooses the tar that packs it. So only files, directories and links are made,
each below the target by a descriptor, and no link is followed. Headers that would need more memory than a path has, and
sparse files, which claim sizes that the stream does not have, are refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from typing import Any, BinaryIO, Final, Never

from container.warden.errors import WardenError
from wsh.units import MIB

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK_BYTES: Final = MIB
#: More parts than this are no path.
_DEPTH: Final = 256
#: Members that hold a long name or other words about the next member. tarfile keeps each in memory, whole.
_WORDS: Final = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_WORDS_BYTES: Final = 64 << 10
#: Words about all later members, which add up, and sparse files. No tar sends them unless it is told to.
_REFUSED: Final = (tarfile.XGLTYPE, tarfile.GNUTYPE_SPARSE)


def extract(stream: BinaryIO, root_fd: int, *, skipped: int = 0, rename: str | None = None) -> None:
    """Makes the members of a tar stream below a directory. Devices, pipes and sockets are left out, and so are the set-id bits.

    ``skipped``: how many parts at the beginning of each name are cut off. ``rename``: the first part of every name that is
    left, whatever the stream says; nothing beside it is touched. WardenError: the stream cannot be taken; OSError;
    tarfile.TarError.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape", tarinfo=_Member) as tar:
            for member in tar:
                if parts := _place(member.name, skipped, rename):
                    _make(tar, member, root_fd, parts, skipped, rename)
                tar.members.clear()  # type: ignore[attr-defined]  # of a stream it would keep all of them
    except WardenError:
        raise
    except (ValueError, OverflowError, RecursionError) as e:  # tarfile does not check every number and name
        raise WardenError(f"the container sent no tar stream: {e}") from e


class _Member(tarfile.TarInfo):
    """Refuses a header before tarfile reads what belongs to it. `tarfile` calls these methods, as its documentation says."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.size < 0 or self.type in _REFUSED or (self.type in _WORDS and self.size > _WORDS_BYTES):
            raise WardenError(
                f"the container sent a header that is refused (type {self.type!r}, {self.size} bytes)"
            )
        return super()._proc_member(tar)  # type: ignore[misc]

    def _refuse_sparse(self, *_given: object) -> Never:
        raise WardenError("the container sent a sparse file")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def _place(name: str, skipped: int, rename: str | None) -> list[str]:
    """Where a member of that name belongs, by the parts of its path. Empty: the target itself, or nowhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or len(parts) > _DEPTH:
        raise WardenError(f"the container sent a name that leads out of the target: {name[:100]!r}")
    parts = parts[skipped:]
    return [rename, *parts[1:]] if rename is not None and parts else parts


def _make(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    root_fd: int,
    parts: list[str],
    skipped: int,
    rename: str | None,
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
        former = _place(member.linkname, skipped, rename) if member.islnk() else []
        if former == parts:  # GNU tar packs a file that it is told of twice so
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.islnk():
            if not former:
                raise WardenError(f"the container sent a link to no file: {member.name[:100]!r}")
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
