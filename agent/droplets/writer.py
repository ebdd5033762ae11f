"""Writes a tree from the members of an archive, with few system calls.

Invariant: nothing is written through a symbolic link, since a link of the archive could lead out of the tree. So each path is opened
component by component with O_NOFOLLOW|O_DIRECTORY. Entries are made only by mkdirat, openat(O_CREAT|O_EXCL|O_NOFOLLOW), symlinkat
and linkat without following; modes and times are set on descriptors. There is no mknod, setxattr or chown, so the tree cannot
contain devices, whiteouts or foreign owners.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Protocol

from agent.droplets.archive import ArchiveError, Bounds, Kind, Member, shown

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOW_WATER_EVERY = 8 << 20
#: Roughly the disk space of an inode without its contents.
_INODE_BYTES = 4096
COPY = 256 << 10


class ArchiveReader(Protocol):
    """A reader of an archive. Iterate over its members; read the contents of a member before you go on to the next one."""

    def __iter__(self) -> Iterator[Member]: ...
    def read(self, limit: int) -> bytes: ...


class TreeWriter:
    """Writes below one open directory. ``files`` counts the inodes made, including parents that no member names. ``size_bytes``
    counts contents."""

    def __init__(self, root_fd: int, bounds: Bounds) -> None:
        self._bounds = bounds
        self._stack: list[tuple[bytes, int]] = []
        self._root_fd = root_fd
        self._directories: dict[tuple[bytes, ...], tuple[int, int]] = {}
        self._until_check = 0
        self.files = 0
        self.size_bytes = 0

    def _count(self) -> None:
        self.files += 1
        if self.files > self._bounds.members:
            raise ArchiveError(f"more than {self._bounds.members} members")
        self._check_low_water(_INODE_BYTES)

    def _open_directory(self, parts: tuple[bytes, ...], *, make: bool) -> int:
        """A descriptor of a directory, valid until the next call. Directories that consecutive paths share are kept open."""
        common = 0
        while common < min(len(self._stack), len(parts)) and self._stack[common][0] == parts[common]:
            common += 1
        while len(self._stack) > common:
            os.close(self._stack.pop()[1])
        for depth in range(common, len(parts)):
            above = self._stack[-1][1] if self._stack else self._root_fd
            try:
                fd = os.open(parts[depth], _DIRECTORY, dir_fd=above)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(parts[depth], 0o700, dir_fd=above)
                self._count()
                self._directories.setdefault(parts[: depth + 1], (0o755, -1))
                fd = os.open(parts[depth], _DIRECTORY, dir_fd=above)
            self._stack.append((parts[depth], fd))
        return self._stack[-1][1] if self._stack else self._root_fd

    def _fresh(self, member: Member, make: Callable[[bytes, int], int | None]) -> int | None:
        """Makes the entry of a member in its directory. An earlier entry of that name is replaced unless it is a directory."""
        above = self._open_directory(member.parts[:-1], make=True)
        name = member.parts[-1]
        try:
            made = make(name, above)
        except FileExistsError:
            os.unlink(name, dir_fd=above)  # EISDIR for a directory: the caller refuses the archive
            made = make(name, above)
        self._count()
        return made

    def _file(self, member: Member, read: Callable[[int], bytes]) -> None:
        fd = self._fresh(member, lambda name, above: os.open(name, _FILE, member.mode, dir_fd=above))
        assert fd is not None
        try:
            while data := read(COPY):
                self.size_bytes += len(data)
                if self.size_bytes > self._bounds.total_bytes:
                    raise ArchiveError(f"more than {self._bounds.total_bytes} bytes")
                self._check_low_water(len(data))
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            os.utime(fd, (member.mtime_s, member.mtime_s))
        finally:
            os.close(fd)

    def _check_low_water(self, count: int) -> None:
        self._until_check -= count
        if self._until_check > 0 or not self._bounds.low_water_bytes:
            return
        self._until_check = _LOW_WATER_EVERY
        state = os.fstatvfs(self._root_fd)
        if state.f_bavail * state.f_frsize < self._bounds.low_water_bytes:
            raise ArchiveError("the host's disk is at its low-water mark")

    def _symlink(self, member: Member) -> None:
        self._fresh(member, lambda name, above: os.symlink(member.target, name, dir_fd=above))
        above = self._open_directory(member.parts[:-1], make=True)
        os.utime(member.parts[-1], (member.mtime_s, member.mtime_s), dir_fd=above, follow_symlinks=False)

    def _hard_link(self, member: Member) -> None:
        if member.parts == member.target_parts:
            raise ArchiveError(f"{shown(b'/'.join(member.parts))}: a hard link to itself")
        source_fd = os.dup(self._open_directory(member.target_parts[:-1], make=False))
        try:
            self._fresh(
                member,
                lambda name, above: os.link(
                    member.target_parts[-1],
                    name,
                    src_dir_fd=source_fd,
                    dst_dir_fd=above,
                    follow_symlinks=False,
                ),
            )
        finally:
            os.close(source_fd)

    def _directory(self, member: Member) -> None:
        if member.parts:  # an archive does not set the mode of the root
            self._open_directory(member.parts, make=True)
            self._directories[member.parts] = (member.mode, member.mtime_s)

    def add(self, member: Member, read: Callable[[int], bytes]) -> None:
        """Writes one member. Raises ArchiveError with the kernel's reason, also for a full disk."""
        try:
            match member.kind:
                case Kind.FILE:
                    self._file(member, read)
                case Kind.DIRECTORY:
                    self._directory(member)
                case Kind.SYMLINK:
                    self._symlink(member)
                case Kind.HARD_LINK:
                    self._hard_link(member)
        except OSError as e:
            raise ArchiveError(f"{shown(b'/'.join(member.parts))}: {member.kind.value}: {e.strerror}") from e

    def finish(self) -> None:
        """Sets modes and times of directories. This is done last because a directory of mode 000 cannot be written to, and deepest
        first because it cannot be entered either. Raises ArchiveError."""
        for parts in sorted(self._directories, key=len, reverse=True):
            mode, mtime_s = self._directories[parts]
            try:
                fd = self._open_directory(parts, make=False)
                os.fchmod(fd, mode)
                if mtime_s >= 0:
                    os.utime(fd, (mtime_s, mtime_s))
            except OSError as e:
                raise ArchiveError(f"{shown(b'/'.join(parts))}: {e.strerror}") from e
        self.close()

    def close(self) -> None:
        while self._stack:
            os.close(self._stack.pop()[1])


def write_tree(reader: ArchiveReader, root_fd: int, bounds: Bounds) -> TreeWriter:
    """Writes a whole archive below ``root_fd``. After ArchiveError the caller must discard the incomplete tree."""
    writer = TreeWriter(root_fd, bounds)
    try:
        for member in reader:
            writer.add(member, reader.read)
        writer.finish()
    finally:
        writer.close()
    return writer
