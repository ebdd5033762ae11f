"""Which cgroup hierarchies a host has, read from the text of /proc/self/mountinfo. Pure.

v1: one mount a controller, or several controllers in one; v2: one mount for all; hybrid: v1 controllers beside an
empty v2. What matters is where the controllers that limits need really are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

#: Controllers that limits and measurements need on v1; v2 has devices as a program and freezer built in.
V1_NEEDED = ("cpu", "cpuacct", "memory", "devices", "pids", "freezer")
V2_NEEDED = ("cpu", "memory", "pids")


class Version(Enum):
    V1 = 1
    V2 = 2


class CgroupsMissing(RuntimeError):
    """The host has no usable hierarchy; the text names what is missing."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    version: Version
    #: v1: controller to mount point; v2: a single entry with an empty key.
    mounts: Mapping[str, Path]


def _entries(mountinfo: str) -> Iterable[tuple[str, str, str]]:
    """(file system type, mount point, super options); proc(5)."""
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if separator and len(fields) >= 6 and len(tail) >= 3:
            yield tail[0], fields[4].encode().decode("unicode_escape"), tail[2]


def detect(mountinfo: str, v2_controllers: frozenset[str]) -> Hierarchy:
    """The hierarchy to use. ``v2_controllers``: the words of cgroup.controllers at the v2 root, if mounted."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for kind, point, options in _entries(mountinfo):
        if kind == "cgroup2":
            v2 = v2 or Path(point)
        elif kind == "cgroup":
            for option in options.split(","):
                if option in V1_NEEDED:
                    v1.setdefault(option, Path(point))
    if v2 is not None and v2_controllers.issuperset(V2_NEEDED):
        return Hierarchy(Version.V2, {"": v2})
    missing = [name for name in V1_NEEDED if name not in v1]
    if missing:
        where = "v1" if v1 else "v1 or v2"
        raise CgroupsMissing(f"cgroup {where}: no mount of {', '.join(missing)}")
    return Hierarchy(Version.V1, v1)
