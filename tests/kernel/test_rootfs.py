"""Stacks: a real busybox build; a new version replaces the old one in one step; a failed build leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

import rootfs_builder
from rootfs_builder.recipes import Progress
from rootfs_builder.stack import digest_tree

pytestmark = pytest.mark.kernel

BUSYBOX = "busybox"


def build(stacks: Path) -> rootfs_builder.Stack:
    return rootfs_builder.build(BUSYBOX, stacks)


def broken(root: Path, _: Progress) -> tuple[str, ...]:
    """A recipe that has made much before it fails."""
    (root / "bin").mkdir()
    (root / "bin/sh").write_bytes(bytes(1 << 20))
    raise rootfs_builder.BuildError("mmdebstrap: it ended with 100: no such package")


def garrison(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", "rootfs", *words], capture_output=True, text=True, check=False
    )


def test_a_stack_is_a_directory_with_a_manifest(tmp_path: Path) -> None:
    """What is in it, when it was built, and a checksum that can be computed again."""
    stack = build(tmp_path)
    manifest = json.loads((tmp_path / BUSYBOX / "manifest.json").read_text())
    sha256, size_bytes, files = digest_tree(stack.rootfs)
    assert (manifest["sha256"], manifest["size_bytes"], manifest["files"]) == (sha256, size_bytes, files)
    assert datetime.fromisoformat(manifest["built_at"]) <= datetime.now(UTC)
    (package,) = manifest["packages"]
    assert package.startswith("busybox-static=")
    assert rootfs_builder.find_stack(BUSYBOX, tmp_path) == stack


def test_what_every_stack_has(tmp_path: Path) -> None:
    """vcap with its home, /app, empty mount points, nothing of the host, no device, and programs that run."""
    root = build(tmp_path).rootfs
    assert "vcap:x:2000:2000:" in (root / "etc/passwd").read_text()
    assert os.readlink(root / "app") == "home/vcap/app"
    assert (root / "home/vcap").stat().st_uid == 2000
    assert all(not list((root / name).iterdir()) for name in ("dev", "proc", "sys", "run", "tmp"))
    assert all((root / "etc" / name).read_text() == "" for name in ("hosts", "hostname", "resolv.conf"))
    kinds = {stat.S_IFMT(path.lstat().st_mode) for path in root.rglob("*")}
    assert kinds <= {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}
    said = subprocess.run(
        ["chroot", root, "sh", "-c", "echo hello"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "hello\n"


def test_two_builds_are_the_same_tree(tmp_path: Path) -> None:
    """Nothing of the day or the place is in it."""
    assert build(tmp_path).manifest.sha256 == build(tmp_path / "elsewhere").manifest.sha256


def test_a_new_one_replaces_the_old_in_one_step(tmp_path: Path) -> None:
    """Whoever looks meanwhile finds a whole one; a container of the old one keeps it until nobody needs it."""
    old = build(tmp_path)
    gaps: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            found = rootfs_builder.find_stack(BUSYBOX, tmp_path)
            if found is None or not (found.rootfs / "bin/sh").is_symlink():
                gaps.append(repr(found))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        new = build(tmp_path)
    finally:
        over.set()
        looking.join()
    assert gaps == []
    assert rootfs_builder.find_stack(BUSYBOX, tmp_path) == new
    assert (old.rootfs / "bin/sh").is_symlink()

    assert rootfs_builder.prune(tmp_path, in_use=[old.rootfs]) == ()
    assert rootfs_builder.prune(tmp_path, in_use=[]) == (old.path,)
    assert rootfs_builder.find_stack(BUSYBOX, tmp_path) == new


def test_a_broken_build_leaves_none(tmp_path: Path) -> None:
    """The first leaves nothing, a later one the old stack as it was; the error says which step and why."""
    for had in (None, build(tmp_path / "had")):
        stacks = tmp_path / ("had" if had else "had-none")
        before = sorted(stacks.rglob("*")) if had else []
        with pytest.raises(rootfs_builder.BuildError, match="no such package"):
            rootfs_builder.build(BUSYBOX, stacks, recipe=broken)
        assert rootfs_builder.find_stack(BUSYBOX, stacks) == had
        left = [path for path in sorted(stacks.rglob("*")) if path.name not in (".versions", ".lock")]
        assert left == [path for path in before if path.name not in (".versions", ".lock")]


def test_a_killed_build_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    """Half a tree is never taken for a stack, and does not stay."""
    program = (
        "import os, signal, sys; from pathlib import Path; import rootfs_builder\n"
        "def killed(root, _):\n"
        "    (root / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"rootfs_builder.build('busybox', Path({str(tmp_path)!r}), recipe=killed)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert rootfs_builder.find_stack(BUSYBOX, tmp_path) is None
    assert list(tmp_path.glob(".versions/.new-*/rootfs/half"))
    build(tmp_path)
    assert list(tmp_path.glob(".versions/.new-*")) == []


def test_the_command_builds_and_lists(tmp_path: Path) -> None:
    """`rootfs build` says what it made, `rootfs list --json` is one document, a failure is three things."""
    built = garrison("build", BUSYBOX, "--stacks", tmp_path)
    assert (built.returncode, built.stdout) == (0, "")
    listed = json.loads(garrison("list", "--stacks", tmp_path, "--json").stdout)
    stack = rootfs_builder.find_stack(BUSYBOX, tmp_path)
    assert stack is not None
    assert listed == [
        {
            "name": BUSYBOX,
            "path": str(stack.path),
            "size_bytes": stack.manifest.size_bytes,
            "sha256": stack.manifest.sha256,
            "built_at": stack.manifest.built_at,
        }
    ]
    failed = garrison("build", BUSYBOX, "--stacks", "/proc/stacks")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: could not build {BUSYBOX}: ")
    assert "/proc/stacks" in failed.stderr
