"""The order of the pools over restarts of the manager: what was released last is given out last, also after a restart.

What is in use needs no file, because the snapshots in the depot name it. The file here holds, for each pool, the entry that was
given out last and the entries that rest. Each release replaces it whole. Without it, or when it is damaged, the pools begin
at their start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from container.aio import Log
from container.pools import LeasePool

_LIMIT_BYTES: Final = 4 << 20


class PoolState(msgspec.Struct, frozen=True):
    """``resting``: for each entry the time (wall clock, seconds) at which it has rested."""

    last: str = ""
    resting: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class _Attached:
    pool: LeasePool[Any]
    name_of: Callable[[Any], str]


class Rotation:
    """``path``: the file; None: nothing is kept. ``wall_s``: the wall clock, since a monotonic one begins anew at a boot."""

    def __init__(self, path: Path | None, log: Log, *, wall_s: Callable[[], float] = time.time) -> None:
        self._path = path
        self._log = log
        self._wall_s = wall_s
        self._pools: dict[str, _Attached] = {}
        self._read = self._load()

    def _load(self) -> dict[str, PoolState]:
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_LIMIT_BYTES), type=dict[str, PoolState])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as e:
            self._log.warning("rotation_not_read", error=str(e), consequence="pools begin at their start")
            return {}

    def attach(self, pool: LeasePool[Any], name_of: Callable[[Any], str]) -> None:
        """Puts the pool where a former manager left it, and records its state from now on. Before anything is taken."""
        self._pools[pool.kind] = _Attached(pool, name_of)
        if (state := self._read.get(pool.kind)) is not None:
            entries = {name_of(entry): entry for entry in pool.entries}
            now_s = self._wall_s()
            left = {entries[name]: at_s - now_s for name, at_s in state.resting.items() if name in entries}
            pool.restore(entries.get(state.last), left)
        pool.on_release(self.save)

    def save(self) -> None:
        """Writes the file (0.1 ms). A full disk is logged, and costs the order alone."""
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode(self._states()))
            new.rename(self._path)
        except OSError as e:
            self._log.warning("rotation_not_written", error=str(e))

    def _states(self) -> dict[str, PoolState]:
        now_s = self._wall_s()
        return {
            kind: PoolState(
                one.name_of(one.pool.last) if one.pool.last is not None else "",
                {one.name_of(entry): now_s + left_s for entry, left_s in one.pool.resting()},
            )
            for kind, one in self._pools.items()
        }
