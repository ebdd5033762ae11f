"""The records of crashes: what is kept, and for how long (docs/protocol.md, "Instance states"). The choice is pure."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from agent.depot import AgentJob
from agent.instances.instance import OUT_OF_MEMORY, Instance
from agent.output import AGENT, STREAMS, OutputChunk

KEPT_PER_APP: Final = 10
CAUSE: Final = AGENT  # beside what the app itself wrote
_MISSING: Final = ".missing"


def to_keep(crashed: Iterable[Instance]) -> frozenset[Instance]:
    """Of one app's crashes, chooses the newest of each index, and the newest out-of-memory crash of each index, which a later exit
    does not replace. At most `KEPT_PER_APP`: first the newest of all, then the out-of-memory ones, then the others."""
    newest_first = sorted(crashed, key=lambda one: (one.crashed_at_s, one.state_since_s), reverse=True)
    last: dict[int, Instance] = {}
    last_oom: dict[int, Instance] = {}
    for one in newest_first:
        last.setdefault(one.index, one)
        if one.exit.description == OUT_OF_MEMORY:
            last_oom.setdefault(one.index, one)
    wanted = dict.fromkeys((*newest_first[:1], *last_oom.values(), *last.values()))
    return frozenset(tuple(wanted)[:KEPT_PER_APP])


async def keep(job: AgentJob, directory: Path) -> None:
    """Copies the output of a crashed app, so that it can be read after its container is gone, until the reaper removes it.

    The spool drops the oldest output past its limit; the number of dropped bytes is kept beside a stream's file.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for stream in STREAMS:
        missing_bytes = 0
        with (directory / stream).open("wb") as file:
            async for chunk in job.stream(stream, follow=False):
                missing_bytes += chunk.gap_bytes
                await asyncio.to_thread(file.write, chunk.data)
        if missing_bytes:
            (directory / f"{stream}{_MISSING}").write_text(f"{missing_bytes}\n")


def kept(directory: Path, stream: str) -> OutputChunk | None:
    """One stream as `keep` has stored it, with the number of missing bytes at its head; None: nothing was stored."""
    try:
        data = (directory / stream).read_bytes()
    except FileNotFoundError:
        return None
    try:
        missing_bytes = int((directory / f"{stream}{_MISSING}").read_text())
    except (FileNotFoundError, ValueError):  # complete, or kept by an agent that did not say
        missing_bytes = 0
    if not data and not missing_bytes:
        return None
    return OutputChunk(stream, data, offset=missing_bytes, gap_bytes=missing_bytes)


def kept_bytes(directory: Path) -> int:
    """The disk space that a record takes, in bytes; 0: there is no record."""
    try:
        return sum(path.stat().st_size for path in directory.iterdir())
    except FileNotFoundError:
        return 0


def keep_cause(directory: Path, cause: str) -> None:
    """Stores why a start failed, for the app's own log, beside the output, so that both are kept equally long. OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / CAUSE).write_text(f"{cause}\n", errors="replace")


def cause_of(directory: Path) -> str:
    """The stored cause of a failed start; empty: none was stored."""
    try:
        return (directory / CAUSE).read_text(errors="replace")
    except OSError:
        return ""


async def sweep(crashes_dir: Path, is_known: Callable[[str], bool]) -> None:
    """Removes the records of instances that are no longer known. OSError: of the first that could not be removed, after the others
    were.

    The records are listed before the registry is asked, so a record that is made meanwhile is not removed.
    """
    names = await asyncio.to_thread(_names, crashes_dir)
    gone = [name for name in names if not is_known(name)]
    await asyncio.to_thread(_remove, crashes_dir, gone)


def _names(crashes_dir: Path) -> tuple[str, ...]:
    return tuple(path.name for path in crashes_dir.iterdir()) if crashes_dir.exists() else ()


def _remove(crashes_dir: Path, gone: Iterable[str]) -> None:
    failed: OSError | None = None
    for name in gone:
        try:
            shutil.rmtree(crashes_dir / name)
        except FileNotFoundError:
            continue
        except OSError as e:
            failed = failed or e
    if failed is not None:
        raise failed
