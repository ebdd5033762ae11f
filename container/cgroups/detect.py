"""Which cgroup hierarchies a host has, read from the text of /proc/self/mountinfo. Pure.

v1 has a mount for each controller, or one mount for several controllers. v2 has one mount for all controllers. A hybrid
host has v1 controllers beside a v2 mount without any. The version is chosen by where the controllers are that limits need.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from container.host import HostUnfit

#: Controllers that limits and measurements need on v1. On v2, devices is a program and freezer is built in.
V1_NEEDED: Final = ("cpu", "cpuacct", "memory", "devices", "pids", "freezer")
#: Used if the host has it. Limits do not need it, but a JVM recognises a v1 container only by it.
V1_WANTED: Final = ("cpuset",)
V2_NEEDED: Final = ("cpu", "memory", "pids")
#: With these, all controllers that v1 ever had. Any other mount option is a flag (cgroups(7)).
_V1_OTHERS: Final = ("blkio", "debug", "hugetlb", "misc", "net_cls", "net_prio", "perf_event", "rdma")
_V1_CONTROLLERS: Final = frozenset((*V1_NEEDED, *V1_WANTED, *_V1_OTHERS))


class Version(Enum):
    """The version of the cgroup interface."""

    V1 = 1
    V2 = 2


class CgroupsMissing(HostUnfit):
    """The host has no cgroup hierarchy that can be used; the text names what is missing."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The version to use, and where its controllers are mounted."""

    version: Version
    #: v1: controller to mount point; v2: a single entry with an empty key.
    mounts: Mapping[str, Path]
    #: v1: for each mount point, all controllers of its hierarchy, also those that are not used here.
    together: Mapping[Path, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Mount:
    kind: str
    root: str
    point: Path
    options: tuple[str, ...]


def _unescape(word: str) -> str:
    """Space, tab, newline and backslash are written as ``\\040`` and so on (proc(5))."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8) & 0xFF]), os.fsencode(word)))


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    """The cgroup mounts. Mounts of a whole hierarchy come before mounts of a part of one (binds, other containers)."""
    found = []
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if separator and len(fields) >= 6 and len(tail) >= 3 and tail[0] in ("cgroup", "cgroup2"):
            found.append(_Mount(tail[0], fields[3], Path(_unescape(fields[4])), tuple(tail[2].split(","))))
    yield from sorted(found, key=lambda mount: mount.root != "/")


def v2_mount(mountinfo: str) -> Path | None:
    """The mount point of the v2 hierarchy, whether it is used or not. None: there is none."""
    return next((mount.point for mount in _mounts(mountinfo) if mount.kind == "cgroup2"), None)


def detect(mountinfo: str, v2_controllers: frozenset[str]) -> Hierarchy:
    """Chooses the hierarchy. ``v2_controllers``: the words of cgroup.controllers at ``v2_mount``; empty: no v2.

    Raises CgroupsMissing.
    """
    v2 = v2_mount(mountinfo)
    if v2 is not None and v2_controllers.issuperset(V2_NEEDED):
        return Hierarchy(Version.V2, {"": v2})
    v1: dict[str, Path] = {}
    together: dict[Path, tuple[str, ...]] = {}
    for mount in _mounts(mountinfo):
        if mount.kind == "cgroup":
            for controller in (*V1_NEEDED, *V1_WANTED):
                if controller in mount.options and controller not in v1:
                    v1[controller] = mount.point
                    together[mount.point] = tuple(one for one in mount.options if one in _V1_CONTROLLERS)
    missing = [name for name in V1_NEEDED if name not in v1]
    if not missing:
        return Hierarchy(Version.V1, v1, together)
    reasons = [f"cgroup v1: no mount of {', '.join(missing)}"] if v1 or v2 is None else []
    if v2 is not None:
        lacking = [name for name in V2_NEEDED if name not in v2_controllers]
        reasons.append(f"cgroup v2: {v2} does not offer {', '.join(lacking)}")
    raise CgroupsMissing("; ".join(reasons))
