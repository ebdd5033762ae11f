"""What an info says of a container: the messages of its measurements. Their annotations are explained in messages.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from container.warden.kinds import UINT64, Number


@dataclass(frozen=True, slots=True)
class MemoryStat:
    """The lines of the kernel's memory.stat whose names Warden knows."""

    cache: Annotated[Number, 1] = None
    rss: Annotated[Number, 2] = None
    mapped_file: Annotated[Number, 3] = None
    pgpgin: Annotated[Number, 4] = None
    pgpgout: Annotated[Number, 5] = None
    swap: Annotated[Number, 6] = None
    pgfault: Annotated[Number, 7] = None
    pgmajfault: Annotated[Number, 8] = None
    inactive_anon: Annotated[Number, 9] = None
    active_anon: Annotated[Number, 10] = None
    inactive_file: Annotated[Number, 11] = None
    active_file: Annotated[Number, 12] = None
    unevictable: Annotated[Number, 13] = None
    hierarchical_memory_limit: Annotated[Number, 14] = None
    hierarchical_memsw_limit: Annotated[Number, 15] = None
    total_cache: Annotated[Number, 16] = None
    total_rss: Annotated[Number, 17] = None
    total_mapped_file: Annotated[Number, 18] = None
    total_pgpgin: Annotated[Number, 19] = None
    total_pgpgout: Annotated[Number, 20] = None
    total_swap: Annotated[Number, 21] = None
    total_pgfault: Annotated[Number, 22] = None
    total_pgmajfault: Annotated[Number, 23] = None
    total_inactive_anon: Annotated[Number, 24] = None
    total_active_anon: Annotated[Number, 25] = None
    total_inactive_file: Annotated[Number, 26] = None
    total_active_file: Annotated[Number, 27] = None
    total_unevictable: Annotated[Number, 28] = None


@dataclass(frozen=True, slots=True)
class CpuStat:
    """``usage``: nanoseconds. ``user``, ``system``: clock ticks (USER_HZ)."""

    usage: Annotated[Number, 1] = None
    user: Annotated[Number, 2] = None
    system: Annotated[Number, 3] = None


@dataclass(frozen=True, slots=True)
class DiskStat:
    bytes_used: Annotated[Number, 1] = None
    inodes_used: Annotated[Number, 2] = None


@dataclass(frozen=True, slots=True)
class BandwidthStat:
    """Rates: bytes a second. Bursts: bytes. ``in``: into the container."""

    in_rate: Annotated[Number, 1] = None
    in_burst: Annotated[Number, 2] = None
    out_rate: Annotated[Number, 3] = None
    out_burst: Annotated[Number, 4] = None


@dataclass(frozen=True, slots=True)
class InfoResponse:
    """``job_ids``: of the jobs that still run."""

    state: Annotated[bytes | None, 10] = None
    events: Annotated[tuple[bytes, ...], 20] = ()
    host_ip: Annotated[bytes | None, 30] = None
    container_ip: Annotated[bytes | None, 31] = None
    container_path: Annotated[bytes | None, 32] = None
    memory_stat: Annotated[MemoryStat | None, 40] = None
    cpu_stat: Annotated[CpuStat | None, 41] = None
    disk_stat: Annotated[DiskStat | None, 42] = None
    bandwidth_stat: Annotated[BandwidthStat | None, 43] = None
    job_ids: Annotated[tuple[int, ...], 44, UINT64] = ()
