"""How a container is made, taken up after a restart, and removed: one ordered list of rungs, and loops over it.

A container consists of pieces: leases, a directory, a disk, cgroups, a process and so on. Each piece is a *rung*. A rung
has four methods (`Rung` in rungs.py):

    make      makes the piece
    undo      removes it again
    take_up   finds it again after a restart of the manager
    remains   removes what a manager that died has left of it

Invariants:

1. **The manager may be killed at any instruction, and nothing is left that a later manager cannot find.** The kernel
   frees by itself what belongs to a process. Everything else (disk image and mount, cgroup, firewall elements) is named
   in the snapshot before it is made. So the directory, which holds the snapshot, comes before the disk. The snapshot is
   written twice: once before these pieces are made (phase ``making``), and once when all of them are (phase ``made``).
2. **A resource gets a new owner only when nothing of the former one is left.** So rungs are undone in reverse order, and
   a rung whose undo fails stops the loop. An address with a link, or ids with a running process, stay leased.
3. **Each undo is correct for a piece that is half made.** A rung counts as made (`Build.standing`) before its `make`
   begins, because `make` may fail in the middle.

Four loops use the list:

- `build` makes the rungs in order. If one fails, it undoes those that are made.
- `undo` undoes them in reverse, from the highest that is made. A destroy uses it too. If a rung's undo fails, that rung
  and those below it stay, and the next call begins with it.
- `take_up` walks them in order over a container that a former manager made. An error means that the container is not
  whole any more; the caller then removes its remains.
- `remove_remains` walks them in reverse over a container that could not be taken up. It needs only the directory and its
  snapshot. It may be killed at any point and called again.

What was tried: make was one function with an `AsyncExitStack`. Undo was written a second time for containers that were
taken up, and a third time for remains. The three copies came to differ. With one list a new piece is one new rung, and
one test breaks every rung in turn (tests/unit/test_create_undo.py, tests/kernel/test_depot_ladder.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from container.build import Build
from container.errors import ContainerError
from container.network import Restored
from container.rungs import (
    CgroupTree,
    Directory,
    DiskImage,
    Files,
    Launched,
    Leases,
    Linked,
    Ready,
    Recorded,
    Rung,
    Watched,
)
from container.shared import Shared
from container.snapshot import Snapshot


class CreateError(ContainerError, RuntimeError):
    """A rung could not be made, and nothing of the container is left. ``rung`` names it; the cause is chained."""

    def __init__(self, rung: str, why: str) -> None:
        super().__init__(f"create: {rung}: {why}")
        self.rung = rung
        self.why = why


class Abandoned(ContainerError, RuntimeError):
    """The caller of create was cancelled, so the create stopped at its next rung."""


RUNGS: Final[Sequence[Rung]] = (
    Leases(),
    Directory(),
    DiskImage(),
    CgroupTree(),
    Launched(),
    Linked(),
    Ready(),
    Files(),
    Recorded(),
    Watched(),
)


async def build(build: Build) -> None:
    """Make the container.

    If a rung fails, the rungs that are made are undone, and its error is raised. `Build.standing` counts those whose undo
    failed.
    """
    shared = build.shared
    try:
        for rung in RUNGS:
            build.standing += 1
            if build.abandoned:
                raise Abandoned(f"create: the caller was cancelled before rung {rung.name}")
            shared.fault(rung.name)
            await rung.make(build)
    except BaseException:
        build.broken = RUNGS[build.standing - 1].name
        try:
            await undo(build)
        except Exception as left:  # logged; the caller gets the error of the rung
            shared.log.warning("create_not_undone_whole", handle=build.handle, error=repr(left))
        raise


async def undo(build: Build) -> None:
    """Undo the rungs that are made. If one fails, its error is raised; the next call begins with that rung."""
    while build.standing:
        await RUNGS[build.standing - 1].undo(build)
        build.standing -= 1


async def take_up(build: Build) -> None:
    """Take up a container that a former manager made. OSError, ContainerError: it is not whole any more.

    The caller restores the links of all containers in one transaction (`wanted_link`).
    """
    try:
        for rung in RUNGS:
            await rung.take_up(build)
    except BaseException:
        let_go(build)
        if build._parts is not None:
            build.shared.ids.give_back(build.parts.ids)
            if build.parts.lease is not None:
                build.shared.addresses.give_back(build.parts.lease)
        raise
    build.standing = len(RUNGS)


def let_go(build: Build) -> None:
    """Close the descriptors of this manager; the container runs on. Idempotent."""
    if build._body is not None:
        build._body.unwatch()
        build._body.events.close()
    if build._parts is not None:
        build._parts.close()
    build.standing = 0


def wanted_link(build: Build) -> Restored | None:
    """The link that the network must restore for a container that was taken up; None: it has no network."""
    parts = build.parts
    if parts.lease is None:
        return None
    return Restored(parts.link_id, parts.lease, parts.egress, parts.ports, parts.limits.bandwidth)


async def remove_remains(shared: Shared, directory: Path, found: Snapshot | None) -> None:
    """Remove what a manager that died has left of a container.

    Firewall elements and cgroups without a container are removed afterwards, by `Depot.recover`.
    """
    for rung in reversed(RUNGS):
        await rung.remains(shared, directory, found)
