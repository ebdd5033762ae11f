"""Figures of a cgroup that say how it fared, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_SHARE_NAMES: Final = ("avg10", "avg60", "avg300")


@dataclass(frozen=True, slots=True)
class Throttling:
    """Counts since the cgroup was made. ``bursts``, ``burst_ns``: 0 on a kernel without bursts."""

    periods: int
    throttled_periods: int
    throttled_ns: int
    bursts: int = 0
    burst_ns: int = 0


def parse_throttling(stat: Mapping[str, int]) -> Throttling | None:
    """Of the counters in cpu.stat, whose names and units differ between v1 and v2. None: the kernel has no hard limit. Pure."""
    if "nr_periods" not in stat:
        return None

    def ns(v1: str, v2: str) -> int:
        return stat[v1] if v1 in stat else stat.get(v2, 0) * 1000

    return Throttling(
        stat["nr_periods"],
        stat["nr_throttled"],
        ns("throttled_time", "throttled_usec"),
        stat.get("nr_bursts", 0),
        ns("burst_time", "burst_usec"),
    )


@dataclass(frozen=True, slots=True)
class Pressure:
    """Waiting for one resource (psi.rst). ``some``: at least one process waited; ``full``: all did.

    Shares are percent of the last 10, 60 and 300 s; totals are microseconds since the cgroup was made. Where a line is missing, as
    "full" of the processor is on older kernels, its figures are 0.
    """

    some: tuple[float, float, float] = (0.0, 0.0, 0.0)
    some_us: int = 0
    full: tuple[float, float, float] = (0.0, 0.0, 0.0)
    full_us: int = 0


def parse_pressure(text: str) -> Pressure:
    """The lines of a pressure file. What is not understood counts as 0. Pure."""
    found: dict[str, tuple[tuple[float, float, float], int]] = {}
    for line in text.splitlines():
        kind, *words = line.split()
        pairs = dict(word.partition("=")[::2] for word in words)
        try:
            first, second, third = (float(pairs[name]) for name in _SHARE_NAMES)
            found[kind] = (first, second, third), int(pairs["total"])
        except (KeyError, ValueError):
            continue
    some, full = found.get("some", ((0.0, 0.0, 0.0), 0)), found.get("full", ((0.0, 0.0, 0.0), 0))
    return Pressure(*some, *full)
