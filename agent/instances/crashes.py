"""What is kept of crashes, and for how long (docs/protocol.md, "Instance states"). The choice is pure."""

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
    """Of one app's crashes: the newest of each index, and of each index the newest for want of memory, which a later
    exit does not erase. At most `KEPT_PER_APP`: the newest of all first, then those for want of memory, then the others."""
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
    """The output of a crashed app stays readable after its container is gone, until the reaper takes it.

    The spool drops the oldest output past its limit; how much that was stands beside a stream's file.
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
    """A stream as `keep` has left it, with what is missing at its head; None: nothing was kept."""
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
    """What a record takes of the disk; 0: there is none."""
    try:
        return sum(path.stat().st_size for path in directory.iterdir())
    except FileNotFoundError:
        return 0


def keep_cause(directory: Path, cause: str) -> None:
    """Why a start failed, for the app's own log: beside the output, so that it is there as long. OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / CAUSE).write_text(f"{cause}\n", errors="replace")


def cause_of(directory: Path) -> str:
    """Nothing: none was kept."""
    try:
        return (directory / CAUSE).read_text(errors="replace")
    except OSError:
        return ""


async def sweep(crashes_dir: Path, is_known: Callable[[str], bool]) -> None:
    """Removes the records of instances that are not known any more. OSError: of the first that would not go; the others went.

    Listed before the question is asked: a record that is made meanwhile is not among them.
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
