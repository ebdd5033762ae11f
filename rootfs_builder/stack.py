"""A built stack on disk, and how a new version replaces the old one.

    STACKS/NAME                    a link, replaced by rename: a reader sees the old version or the new one
    STACKS/.versions/NAME-ID/      rootfs/ and manifest.json; never changed once published
    STACKS/.versions/.new-*        a build under way; the next build removes what a killed one left

A container uses the *version* that it was made from, so it keeps working after a rebuild. `prune` removes versions that are
not in use according to the caller. Owners on disk are the numbers inside a container; mounts map them to host ids.
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
    """A stack could not be built; the text has the step and the reason. Nothing of the build is left."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of a stack. ``sha256`` covers names, kinds, modes, owners, link targets and contents of the tree."""

    name: str
    sha256: str
    built_at: str
    size_bytes: int
    files: int
    packages: tuple[str, ...]
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Stack:
    """A published version of a stack. ``path`` and ``rootfs`` name the version itself, not the link to it."""

    name: str
    path: Path
    manifest: Manifest

    @property
    def rootfs(self) -> Path:
        return self.path / ROOTFS


def digest_tree(root: Path) -> tuple[str, int, int]:
    """(sha256, bytes of regular files, number of entries) of a tree that does not change. A file with hard links counts once."""
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
    """A new directory for a build; it is removed at the end unless it was published. Waits for any other build here."""
    versions = stacks_dir / ".versions"
    versions.mkdir(parents=True, exist_ok=True)
    with (stacks_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it when this process ends, also by a kill
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
    """Write the manifest of a finished build, sync the disk, and point the name to the new version."""
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
    """Remove the versions that no name points to and that are not ``in_use`` (paths of versions or root file systems).

    Returns what was removed.
    """
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
