"""A disk limit without kernel quota: an ext4 image for each container, loop-mounted in the depot."""

from __future__ import annotations

from container.disk.image import Disk, DiskError, DiskUsage
from container.disk.templates import Disks

__all__ = ["Disk", "DiskError", "DiskUsage", "Disks"]
