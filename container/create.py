"""How a container is made, taken up after a restart, and removed: one ordered list of rungs, and loops over it.

Each rung of `RUNGS` knows four things: how its piece is made, how it is undone, how it is taken up again when the
manager has been restarted, and how the remains of it are removed when a dead manager left them. Three loops use them:

- `build` makes the rungs in order. `undo` undoes them in reverse, from the one that stands highest; a create that
  fails and a destroy both end there. A rung counts as standing from the moment before it is made, so each undo is
  right for a piece that is half made. A rung whose undo fails stays, with all below it, and the next `undo` begins
  with it: an address whose link is still there, or ids of a process that still runs, must not get a new owner.
- `take_up` walks the same rungs in order over a container that a former manager made. An error says that the
  container does not live any more.
- `remove_remains` walks them in reverse over what is left of such a container. It needs only the depot directory and
  the snapshot in it, may be killed at any point, and can be begun again.

The kernel takes back by itself what belongs to a process. Everything else (depot directory, disk image and its mount,
cgroup, firewall elements) is named by the snapshot in the depot before it is made. This is why the directory comes
before the disk, and why the snapshot is written twice.

The rungs were once a function with an `AsyncExitStack`, and the undo was written again for take-up and for removal.
The three copies drifted apart: this list is the only place now.
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
    """A rung broke; nothing is left of the container. ``rung`` names it, the cause is chained."""

    def __init__(self, rung: str, why: str) -> None:
        super().__init__(f"create: {rung}: {why}")
        self.rung = rung
        self.why = why


class Abandoned(ContainerError, RuntimeError):
    """The caller of create has gone away meanwhile."""


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
    """Make the container. Raises what a rung raised; by then the rungs below are undone as far as they can be
    (`Build.standing` counts those that are left).
    """
    shared = build.shared
    try:
        for rung in RUNGS:
            build.standing += 1
            if build.abandoned:
                raise Abandoned(rung.name)
            shared.fault(rung.name)
            await rung.make(build)
    except BaseException:
        build.broken = RUNGS[build.standing - 1].name
        try:
            await undo(build)
        except Exception as left:  # the caller gets what broke the rung, the log what could not be undone
            shared.log.warning("create_not_undone_whole", handle=build.handle, error=repr(left))
        raise


async def undo(build: Build) -> None:
    """Undo what stands. Raises what a rung raised; that rung and those below it are left to the next call."""
    while build.standing:
        await RUNGS[build.standing - 1].undo(build)
        build.standing -= 1


async def take_up(build: Build) -> None:
    """Take up what a former manager made. Raises OSError, ContainerError: it does not live any more.

    The link is restored by the caller, for all containers in one transaction (`wanted_link`).
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
    """Close this manager's descriptors and leave the container as it is. Idempotent."""
    if build._body is not None:
        build._body.unwatch()
        build._body.events.close()
    if build._parts is not None:
        build._parts.close()
    build.standing = 0


def wanted_link(build: Build) -> Restored | None:
    """What the network must restore for a container that was taken up."""
    parts = build.parts
    return (
        Restored(parts.link_id, parts.lease, parts.egress, parts.ports) if parts.lease is not None else None
    )


async def remove_remains(shared: Shared, directory: Path, found: Snapshot | None) -> None:
    """Remove what a dead manager left of a container.

    Firewall elements and cgroups that no living container owns are swept by `Depot.recover` after this.
    """
    for rung in reversed(RUNGS):
        await rung.remains(shared, directory, found)
