"""The stacks of this host: which tree belongs to a configured one, and why nothing can run on it."""

from __future__ import annotations

from pathlib import Path

from wsh.stacks import rootfs_of as rootfs_of


def no_stack(package_path: Path) -> str | None:
    """Why nothing can run on it; None: something can."""
    if not package_path.exists():
        return f"there is no {package_path}"
    try:
        rootfs = rootfs_of(package_path)
        if next(rootfs.iterdir(), None) is None:
            return f"{rootfs} is empty"
    except OSError as e:
        return f"{package_path}: {e.strerror}"
    return None
