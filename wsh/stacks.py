"""The layout of a built stack on disk, shared by its builder and the agent.

    STACKS/NAME                    a link to the newest version
    STACKS/.versions/NAME-ID/      ROOTFS and MANIFEST; never changed once published

Any other directory may serve as a stack too: it is a root file system itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOTFS: Final = "rootfs"
MANIFEST: Final = "manifest.json"


def is_built(version: Path) -> bool:
    """True for a version that the builder published."""
    return (version / MANIFEST).is_file()


def rootfs_of(package_path: Path) -> Path:
    """The root file system below ``package_path``. Links are resolved, because a later build points them to another version."""
    real = package_path.resolve()
    return real / ROOTFS if is_built(real) else real
