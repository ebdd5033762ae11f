"""A built stack on disk, and how a new one takes the place of the old.

    STACKS/NAME                    a link, renamed into place: a reader sees the old one or the new one
    STACKS/.versions/NAME-ID/      rootfs/ and manifest.json; never changed once published
    STACKS/.versions/.new-*        a build under way; removed by the next build when it was killed

A container holds the *version* it was made from, so the old one keeps working after a rebuild; `prune` takes away
versions that the caller says nobody uses. Owners on disk are plain numbers: shifting is the container's business.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from wsh.stacks import MANIFEST, ROOTFS, is_built

FORMAT = 1


class BuildError(RuntimeError):
    """A stack could not be built; the text says which step and why. Nothing of it is left."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a stack. ``sha256`` is of the tree: names, kinds, modes, owners, link targets, contents."""

    name: str
    sha256: str
    built_at: str
    size_bytes: int
    files: int
    packages: tuple[str, ...]
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Stack:
    """A published stack. ``rootfs`` is the version's own path, not through the link."""

    name: str
    path: Path
    manifest: Manifest

    @property
    def rootfs(self) -> Path:
        return self.path / ROOTFS


def digest_tree(root: Path) -> tuple[str, int, int]:
    """(sha256, bytes of regular files, number of entries) of a tree at rest; hard links count once in bytes."""
    total, count, seen = 0, 0, set[tuple[int, int]]()
    digest = hashlib.sha256()
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(files + names):
            path = os.path.join(directory, name)  # noqa: PTH118 - tens of thousands of them
            info = os.lstat(path)
            what = ""
            if stat.S_ISREG(info.st_mode):
                if (info.st_dev, info.st_ino) not in seen:
                    seen.add((info.st_dev, info.st_ino))
                    total += info.st_size
                with open(path, "rb") as file:  # noqa: PTH123
                    what = hashlib.file_digest(file, "sha256").hexdigest()
            elif stat.S_ISLNK(info.st_mode):
                what = os.readlink(path)  # noqa: PTH115
            relative = os.path.relpath(path, root)
            digest.update(
                f"{relative}\0{info.st_mode:o}\0{info.st_uid}:{info.st_gid}\0{what}\0\n".encode(
                    errors="surrogateescape"
                )
            )
            count += 1
    return digest.hexdigest(), total, count


def read_manifest(version_dir: Path) -> Manifest:
    raw = json.loads((version_dir / MANIFEST).read_text())
    return Manifest(**{**raw, "packages": tuple(raw["packages"])})


def find_stack(name: str, stacks_dir: Path) -> Stack | None:
    """The current version of a stack, or None."""
    link = stacks_dir / name
    if not link.is_symlink() or not is_built(link):
        return None
    path = link.resolve()
    return Stack(name, path, read_manifest(path))


def list_stacks(stacks_dir: Path) -> tuple[Stack, ...]:
    names = sorted(entry.name for entry in stacks_dir.iterdir()) if stacks_dir.is_dir() else []
    return tuple(
        stack for name in names if not name.startswith(".") and (stack := find_stack(name, stacks_dir))
    )


@contextmanager
def building(stacks_dir: Path) -> Iterator[Path]:
    """A fresh directory for a build, alone on this ``stacks_dir``; gone afterwards unless it was published."""
    versions = stacks_dir / ".versions"
    versions.mkdir(parents=True, exist_ok=True)
    with (stacks_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however that ends
        for stale in versions.glob(".new-*"):
            shutil.rmtree(stale)
        fresh = versions / f".new-{secrets.token_hex(4)}"
        (fresh / ROOTFS).mkdir(parents=True)
        (fresh / ROOTFS).chmod(0o755)
        fresh.chmod(0o755)
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def publish(name: str, fresh: Path, stacks_dir: Path, packages: tuple[str, ...]) -> Stack:
    """Give a finished build its manifest, make it durable, and let the name lead to it."""
    now = datetime.now(UTC)
    sha256, size_bytes, files = digest_tree(fresh / ROOTFS)
    manifest = Manifest(name, sha256, now.isoformat(timespec="seconds"), size_bytes, files, packages)
    (fresh / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    os.sync()
    version = fresh.parent / f"{name}-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    fresh.rename(version)
    link = stacks_dir / f".{name}-{secrets.token_hex(4)}"
    link.symlink_to(Path(".versions") / version.name)
    link.replace(stacks_dir / name)
    return Stack(name, version.resolve(), manifest)


def prune(stacks_dir: Path, in_use: Collection[Path]) -> tuple[Path, ...]:
    """Remove versions that no name leads to and whose root file system is not ``in_use``; says which."""
    current = {stack.path for stack in list_stacks(stacks_dir)}
    used = {path.resolve() for path in in_use}
    removed = []
    for version in sorted((stacks_dir / ".versions").glob("[!.]*")):
        version = version.resolve()
        if version in current or version in used or version / ROOTFS in used:
            continue
        shutil.rmtree(version)
        removed.append(version)
    return tuple(removed)
