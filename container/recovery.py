"""What a new manager does with the containers of a former one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from container import create, snapshot
from container.build import Build
from container.host import refuse_if_short
from container.network import Restored
from container.pools import IdLease
from container.rungs import Lost, remove_cgroup
from container.shared import Shared
from container.snapshot import Holdings, LaterSnapshot, Phase, Snapshot, SnapshotError
from container.wshd import LaterWshd

_TAKEN_UP_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Recovery:
    """Handles: taken up again, removed whole, and left alone because a later version made them. ``records``: what the caller kept
    beside those that were removed.
    """

    found: tuple[str, ...]
    removed: tuple[str, ...]
    left_alone: tuple[str, ...] = ()
    records: Mapping[str, bytes] = field(default_factory=dict)


async def recover(shared: Shared) -> tuple[list[Build], Recovery]:
    """See `Depot.recover`. The builds that live stand whole, with their links."""
    later, removed, records = dict[str, Holdings](), list[str](), dict[str, bytes]()
    known = {directory: _look_at(directory) for directory in sorted(shared.depot_dir.iterdir())}
    # Together: one that does not answer holds up no other.
    slots = asyncio.Semaphore(_TAKEN_UP_AT_ONCE)
    results = await asyncio.gather(*(_take_up(shared, found, slots) for found in known.values()))
    builds = {one.handle: one for one in results if isinstance(one, Build)}
    for result in results:
        if isinstance(result, Exception):
            refuse_if_short(result)
    for (directory, found), result in zip(known.items(), results, strict=True):
        if isinstance(result, Build):
            continue
        if isinstance(result, LaterSnapshot | LaterWshd):
            later[directory.name] = snapshot.read_holdings(directory)
            shared.log.warning(
                "container_of_a_later_version_left_alone", handle=directory.name, why=str(result)
            )
            continue
        shared.log.info("container_removed", handle=directory.name, why=str(result) or repr(result))
        if (record := snapshot.read_record(directory)) is not None:
            records[directory.name] = record
        try:
            await create.remove_remains(shared, directory, found if isinstance(found, Snapshot) else None)
        except Exception as e:
            # One that cannot be removed is no reason not to take up the others.
            shared.log.warning("container_not_removed", handle=directory.name, error=str(e))
            continue
        removed.append(directory.name)
    kept = [one for one in (_reserve(shared, held) for held in later.values()) if one is not None]
    await _sweep_cgroups(shared, {one.link_id for one in builds.values()}, list(later.values()))
    await _restore_links(shared, list(builds.values()), kept)
    return list(builds.values()), Recovery(tuple(builds), tuple(removed), tuple(later), records)


async def _take_up(
    shared: Shared, found: Snapshot | Exception, slots: asyncio.Semaphore
) -> Build | Exception:
    """What is wrong with one costs no other its life, and no start."""
    if isinstance(found, Exception):
        return found
    if found.phase is not Phase.MADE or found.boot_id != shared.boot_id:
        return Lost("was being made" if found.phase is not Phase.MADE else "the host has been booted since")
    build = Build(shared, found.handle, found.link_id, found=found)
    async with slots:
        try:
            await create.take_up(build)
        except Exception as e:
            return e
    return build


def _reserve(shared: Shared, held: Holdings) -> Restored | None:
    """What a container that is left alone has of the host is nobody else's; its rules stand on."""
    if held.ids_first is not None:
        shared.ids.claim(IdLease(held.ids_first))
    lease = next((one for one in shared.addresses.entries if one.network == held.network), None)
    if lease is None or held.link_id is None:
        return None
    shared.addresses.claim(lease)
    bandwidth = held.limits.bandwidth if held.limits is not None else None
    return Restored(held.link_id, lease, held.egress, held.ports, bandwidth)


async def _sweep_cgroups(shared: Shared, owned: set[str], later: list[Holdings]) -> None:
    if any(one.link_id is None for one in later):
        shared.log.warning("cgroups_not_swept", why="one of them is a later version's, and not known by name")
        return
    owned |= {one.link_id for one in later if one.link_id is not None}
    for name in shared.cgroups.list():
        if name in owned:
            continue
        try:
            await remove_cgroup(shared, name)
        except (OSError, ValueError) as e:  # a process does not go; or the directory is none of ours
            shared.log.warning("cgroup_not_removed", name=name, error=str(e))


async def _restore_links(shared: Shared, builds: list[Build], kept: list[Restored]) -> None:
    """All at once, also when there are none: rules of containers that are gone go with it."""
    wanted = [one for one in map(create.wanted_link, builds) if one is not None]
    links = await shared.networks.restore([*wanted, *kept])
    for build in builds:
        if (link := links.get(build.link_id)) is not None:
            build.body.follow_link(link, is_new=False)


def _look_at(directory: Path) -> Snapshot | Exception:
    """The snapshot, or why there is none that can be taken up."""
    try:
        found = snapshot.read(directory)
    except SnapshotError as e:
        return e
    if found.handle != directory.name:
        return SnapshotError(f"the snapshot is of {found.handle!r}")
    return found
