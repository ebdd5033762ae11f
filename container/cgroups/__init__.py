"""Limits and measurements by cgroups: one contract, with v1 and v2 below it, chosen by what the host has mounted."""

from __future__ import annotations

from pathlib import Path

from container.cgroups.base import Cgroups, CgroupSet
from container.cgroups.detect import CgroupsMissing, Hierarchy, Version, detect, v2_mount
from container.cgroups.v1 import CgroupsV1
from container.cgroups.v2 import CgroupsV2

__all__ = [
    "CgroupSet",
    "Cgroups",
    "CgroupsMissing",
    "Hierarchy",
    "Version",
    "detect",
    "host_hierarchy",
    "open_backend",
    "v2_mount",
]


def host_hierarchy() -> Hierarchy:
    """Finds the cgroup hierarchy of this host. CgroupsMissing: the host has none that can be used."""
    mountinfo = Path("/proc/self/mountinfo").read_text()
    v2 = v2_mount(mountinfo)
    controllers = (v2 / "cgroup.controllers").read_text().split() if v2 is not None else []
    return detect(mountinfo, frozenset(controllers))


def open_backend(parent: str) -> Cgroups:
    """The back end for this host. Makes the directory ``parent``, which holds the cgroups of all containers.

    CgroupsMissing; ValueError: ``parent`` is not a valid name; OSError.
    """
    hierarchy = host_hierarchy()
    return CgroupsV2(hierarchy, parent) if hierarchy.version is Version.V2 else CgroupsV1(hierarchy, parent)
