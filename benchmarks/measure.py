"""Interleaved timing: each round times every subject once, so that a change of the machine's speed affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

Action = Callable[[], Awaitable[None]]
WARM_UPS = 3
RUNS = 30


async def nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Subject:
    """A timed action, and the action that undoes it, which is not timed."""

    action: Action
    undo: Action = nothing


@dataclass(frozen=True, slots=True)
class Figure:
    median_ms: float
    p95_ms: float
    runs: int


def summarise(samples_ms: list[float]) -> Figure:
    ordered = sorted(samples_ms)
    return Figure(
        round(statistics.median(ordered), 3),
        round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 3),
        len(ordered),
    )


async def interleave(subjects: Mapping[str, Subject], runs: int = RUNS) -> dict[str, Figure]:
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(WARM_UPS + runs):
        for name, subject in subjects.items():
            start = time.perf_counter()
            await subject.action()
            if turn >= WARM_UPS:
                samples[name].append((time.perf_counter() - start) * 1000)
            await subject.undo()
    return {name: summarise(values) for name, values in samples.items()}
