"""Looks up the root file system of a configured stack, and why it cannot be used."""

from __future__ import annotations

from pathlib import Path

from wsh.stacks import rootfs_of as rootfs_of


def no_stack(package_path: Path) -> str | None:
    """Why the stack at ``package_path`` cannot be used; None: it can."""
    if not package_path.exists():
        return f"there is no {package_path}"
    try:
        rootfs = rootfs_of(package_path)
        if next(rootfs.iterdir(), None) is None:
            return f"{rootfs} is empty"
    except OSError as e:
        return f"{package_path}: {e.strerror}"
    return None
