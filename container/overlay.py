"""Directories of a container's overlays, and the removal of trees that a job has made.

The upper directories belong to the container's mapped ids: root's to its root, home's to its vcap. Nothing
below them is ever chowned (that would copy everything up).
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from container import users
from container.pools import IdLease


@dataclass(frozen=True, slots=True)
class Uppers:
    """Each holds ``upper`` and ``work``."""

    root: Path
    home: Path


def make_uppers(directory: Path, ids: IdLease) -> Uppers:
    """Make root/ and home/ with their upper and work directories below ``directory``."""
    uppers = Uppers(directory / "root", directory / "home")
    root_id, vcap_id = ids.first, users.vcap_host_id(ids.first)
    for base, owner in ((uppers.root, root_id), (uppers.home, vcap_id)):
        for path, path_owner in ((base, root_id), (base / "upper", owner), (base / "work", root_id)):
            path.mkdir(mode=0o755)
            os.chown(path, path_owner, path_owner)
    return uppers


def stack_homes(layers: tuple[Path, ...]) -> tuple[Path, ...]:
    """The layers' own /home/vcap directories, topmost first. A link is not followed: a stack is not trusted
    so far.
    """
    found = []
    for layer in layers:
        parent = layer / "home"
        home = parent / "vcap"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if stat.S_ISDIR(parent.lstat().st_mode) and stat.S_ISDIR(home.lstat().st_mode):
                found.append(home)
    return tuple(found)


def remove_tree(path: Path) -> None:
    """Remove a directory that a job may have filled: any depth, never through a link, nothing of another
    device.

    Idempotent. ``shutil.rmtree`` recurses and dies on deep trees; this one lifts subdirectories up to the
    top and empties them there, so that the depth does not matter.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        device = os.fstat(top).st_dev
        lifted = count()
        while True:
            entries = os.listdir(top)  # noqa: PTH208  by descriptor
            if not entries:
                break
            for name in entries:
                _remove_entry(top, name, device, lifted)
    finally:
        os.close(top)
    path.rmdir()


def _remove_entry(top: int, name: str, device: int, lifted: count[int]) -> None:
    try:
        info = os.lstat(name, dir_fd=top)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(info.st_mode):
        os.unlink(name, dir_fd=top)
        return
    if info.st_dev != device:
        raise OSError(16, "a file system is mounted here", name)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        for child in os.listdir(fd):  # noqa: PTH208  by descriptor
            if stat.S_ISDIR(os.lstat(child, dir_fd=fd).st_mode):
                _lift(fd, child, top, lifted)
            else:
                os.unlink(child, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=top)


def _lift(parent: int, name: str, top: int, lifted: count[int]) -> None:
    while True:
        target = f".lifted-{next(lifted)}"
        try:
            os.rename(name, target, src_dir_fd=parent, dst_dir_fd=top)
        except (FileExistsError, NotADirectoryError):
            continue
        except OSError as e:
            if e.errno == 39:  # ENOTEMPTY: the name is taken by a directory
                continue
            raise
        return
