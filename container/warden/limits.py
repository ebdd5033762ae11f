"""Numbers of Warden's requests: resource limits of jobs, names of disk limits, lines of memory.stat. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from resource import RLIM_INFINITY
from typing import Final

from container.parts import Info
from container.spec import Bandwidth
from container.warden import messages as m

#: How a request says that there is no limit.
INFINITY: Final = 2**64 - 1
BLOCK_BYTES: Final = 1024
#: What a container without a memory limit reports: the largest number of pages, in bytes.
NO_MEMORY_LIMIT: Final = 0x7FFF_FFFF_FFFF_F000
#: The rates and bursts of a container without a bandwidth limit.
NO_BANDWIDTH: Final = 0xFFFF_FFFF
LEAST_CPU_SHARES: Final = 2
DEFAULT_CPU_SHARES: Final = 1024

#: The limits of a job that neither the configuration nor the request names (docs/warden.md, "Jobs").
DEFAULT_RLIMITS: Final[Mapping[str, int]] = {
    "as": INFINITY,
    "core": 0,
    "cpu": INFINITY,
    "data": INFINITY,
    "fsize": INFINITY,
    "locks": INFINITY,
    "memlock": 65536,
    "msgqueue": 819200,
    "nice": 0,
    "nofile": 1024,
    "nproc": 1024,
    "rss": INFINITY,
    "rtprio": 0,
    "sigpending": 1024,
    "stack": 8388608,
}


def job_rlimits(configured: Mapping[str, int], asked: m.ResourceLimits | None) -> dict[str, int]:
    """All limits of one job: the defaults, then the configuration's, then the request's."""
    named = {} if asked is None else _set_fields(asked)
    limits = {**DEFAULT_RLIMITS, **configured, **{name.rstrip("_"): value for name, value in named.items()}}
    return {name: RLIM_INFINITY if value >= INFINITY else value for name, value in limits.items()}


def _set_fields(value: m.ResourceLimits | m.DiskLimits) -> dict[str, int]:
    found = {one.name: getattr(value, one.name) for one in fields(value)}
    return {name: number for name, number in found.items() if isinstance(number, int)}


#: The names of one limit, the stronger later, each with its unit in bytes.
_BYTES_HARD: Final = (
    ("byte_limit", 1),
    ("byte", 1),
    ("byte_hard", 1),
    ("block_limit", BLOCK_BYTES),
    ("block", BLOCK_BYTES),
    ("block_hard", BLOCK_BYTES),
)
_INODES_HARD: Final = ("inode_limit", "inode", "inode_hard")


def wanted_disk_bytes(request: m.DiskLimits) -> int | None:
    """The hard byte limit that the request sets, a whole number of blocks; None: it sets none. 0: no limit."""
    wanted = None
    for name, unit in _BYTES_HARD:
        if (value := getattr(request, name)) is not None:
            wanted = -(-value * unit // BLOCK_BYTES) * BLOCK_BYTES
    return wanted


def wanted_inodes(request: m.DiskLimits) -> int | None:
    """The hard inode limit that the request sets; None: it sets none."""
    wanted = None
    for name in _INODES_HARD:
        if (value := getattr(request, name)) is not None:
            wanted = value
    return wanted


def disk_response(limit_bytes: int, inodes: int) -> m.LimitDiskResponse:
    """The limits under all their names. A soft limit is the same as the hard one here."""
    blocks = limit_bytes // BLOCK_BYTES
    return m.LimitDiskResponse(
        *(blocks, blocks, blocks, blocks),
        *(inodes, inodes, inodes, inodes),
        *(limit_bytes, limit_bytes, limit_bytes, limit_bytes),
    )


def bandwidth_stat(info: Info, limit: Bandwidth | None, asked_burst: int | None) -> m.BandwidthStat:
    """What the kernel has in force. ``asked_burst``: shown in place of that of ``limit``, which had to be larger."""
    shown = list[int]()
    for found in (info.bandwidth_in, info.bandwidth_out):
        if found is None:
            shown += [NO_BANDWIDTH, NO_BANDWIDTH]
        else:
            burst = asked_burst if asked_burst and found == limit else found.burst_bytes
            shown += [found.rate_bytes_s, burst]
    return m.BandwidthStat(*shown)


#: Lines of cgroup v2 that are lines of v1 under another name.
_OF_V2: Final = {"anon": "rss", "file": "cache", "file_mapped": "mapped_file"}


def memory_stat(lines: Mapping[str, int], limit_bytes: int | None) -> m.MemoryStat:
    """The lines of memory.stat that Warden knows, on cgroup v1 as they are, on v2 as far as they have the same meaning."""
    known = {one.name for one in fields(m.MemoryStat)}
    found = {name: value for name, value in lines.items() if name in known}
    if "anon" in lines:
        found |= {new: lines[old] for old, new in _OF_V2.items() if old in lines}
        found |= {f"total_{name}": value for name, value in found.items() if f"total_{name}" in known}
    limit = NO_MEMORY_LIMIT if limit_bytes is None else limit_bytes
    stat = m.MemoryStat(**found)
    if stat.hierarchical_memory_limit is None:
        stat = replace(stat, hierarchical_memory_limit=limit, hierarchical_memsw_limit=limit)
    return stat
