"""Disk limits without kernel quota: an ext4 image for each container, loop-mounted (docs/containers.md, "Disk limits")."""

from __future__ import annotations

from container.disk.image import Disk, DiskError, DiskUsage
from container.disk.templates import Disks

__all__ = ["Disk", "DiskError", "DiskUsage", "Disks"]
