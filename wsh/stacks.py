"""The layout of a built stack on disk, which its builder and the agent agree on.

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
    """The tree that containers stand on: of the version, not of the link to it, which a build may lead elsewhere."""
    real = package_path.resolve()
    return real / ROOTFS if is_built(real) else real
