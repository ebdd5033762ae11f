"""What the depots of one network namespace have, so that none takes what another has.

Several managers may work in one network namespace. Each has firewall tables, a cgroup parent, a pool of addresses, one of
ports and one of ids. Each depot has a file with its claim, which its manager keeps locked. A claim counts as long as the manager
lives, or a container of the depot runs (docs/network.md, "Several managers in one network namespace").
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from container import snapshot
from container.defaults import FIREWALL
from container.host import HostUnfit
from container.locks import DepotBusy
from container.snapshot import SnapshotError

#: Gone after a boot, like everything that is claimed.
DIRECTORY: Final = Path("/run/garrison/depots")
_LIMIT_BYTES: Final = 1 << 16
_MOST_FILES: Final = 4096
#: Firewall tables: the back end's name, and theirs.
Tables: TypeAlias = tuple[str, str]


class HostClaim(msgspec.Struct, frozen=True, kw_only=True):
    """``firewall``: the back end's name. ``ports``, ``ids``: the first and the last of the host's. ``forwarding_file``: where its
    opened uplinks are recorded.
    """

    depot_dir: str
    firewall: str = FIREWALL
    table: str
    cgroup_parent: str
    pool_network: str
    ports: tuple[int, int]
    ids: tuple[int, int]
    forwarding_file: str
    boot: str
    netns: int
    pid: int


def overlaps(mine: HostClaim, other: HostClaim) -> list[str]:
    """What both have, each as a text. Pure."""
    found = []
    if mine.table == other.table:
        found.append(f"firewall table {mine.table}")
    if mine.cgroup_parent == other.cgroup_parent:
        found.append(f"cgroup parent {mine.cgroup_parent}")
    if ipaddress.IPv4Network(mine.pool_network).overlaps(ipaddress.IPv4Network(other.pool_network)):
        found.append(f"pool network {mine.pool_network} (theirs: {other.pool_network})")
    for what, one, two in (("ports", mine.ports, other.ports), ("ids", mine.ids, other.ids)):
        if one[0] <= two[1] and two[0] <= one[1]:
            found.append(f"{what} {one[0]}-{one[1]} (theirs: {two[0]}-{two[1]})")
    return found


class Claims:
    """The claim of one depot among those of the others. ``directory``: where all of them are."""

    def __init__(self, mine: HostClaim, directory: Path = DIRECTORY) -> None:
        self._mine = mine
        self._directory = directory
        self._path = directory / f"{hashlib.sha256(os.fsencode(mine.depot_dir)).hexdigest()[:24]}.json"
        self._fd = -1

    def enter(self) -> list[Tables]:
        """Claims everything, or nothing. Returns the firewall tables that are in the way and in force for nobody, for the caller
        to remove: of dead depots, and of this one by another back end.

        The caller has locked the depot's directory. DepotBusy: another depot has a part of it; the text names both. HostUnfit: the
        depot's own containers run behind another back end. OSError.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            refused, left = list[str](), self._own_left()
            for other, is_alive in self._found():
                if not (both := overlaps(self._mine, other)):
                    continue
                if is_alive or _has_containers(other):
                    who = (
                        f"pid {other.pid}" if is_alive else "whose manager has ended and whose containers run"
                    )
                    refused.append(f"the depot {other.depot_dir} ({who}) has: {', '.join(both)}")
                elif (other.firewall, other.table) != (self._mine.firewall, self._mine.table):
                    left.append((other.firewall, other.table))
            if refused:
                raise DepotBusy(f"{self._mine.depot_dir}: {'; '.join(refused)}")
            self._write()
        return left

    def _own_left(self) -> list[Tables]:
        """A link is made for its back end, so containers cannot go from one to another."""
        read = self._read(self._path)
        former = read[0] if read is not None and self._is_here(read[0]) else None
        if _has_containers(self._mine):
            was = former.firewall if former is not None else FIREWALL  # older releases had no other
            if was != self._mine.firewall:
                raise HostUnfit(
                    f"{self._mine.depot_dir}: its containers run behind {was}, and {self._mine.firewall} cannot take them up: "
                    "keep that back end, or stop them first"
                )
        elif former is not None and former.firewall != self._mine.firewall:
            return [(former.firewall, former.table)]
        return []

    def others(self) -> list[HostClaim]:
        """The claims of other depots of this network namespace that count now. OSError."""
        with self._alone():
            return [other for other, is_alive in self._found() if is_alive or _has_containers(other)]

    def leave(self, *, forget: bool) -> None:
        """The manager ends. ``forget``: the claim goes too, since nothing of the depot is left. Idempotent."""
        if self._fd < 0:
            return
        if forget:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(fd, msgspec.json.encode(self._mine))
            new.rename(self._path)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _found(self) -> Iterator[tuple[HostClaim, bool]]:
        """Each other claim of this network namespace, and whether its manager lives. Removes what nobody needs any more."""
        for path in sorted(self._directory.glob("*.json"))[:_MOST_FILES]:
            if path != self._path and (found := self._read(path)) is not None:
                claim, is_alive = found
                if not is_alive and not Path(claim.depot_dir).is_dir():
                    path.unlink(missing_ok=True)
                elif self._is_here(claim):
                    yield claim, is_alive

    def _is_here(self, claim: HostClaim) -> bool:
        """Of this boot and network namespace."""
        return (claim.boot, claim.netns) == (self._mine.boot, self._mine.netns)

    def _read(self, path: Path) -> tuple[HostClaim, bool] | None:
        """A claim, and whether its manager lives. None: there is none.

        A damaged file says nothing that anybody could respect. It is removed, unless a manager that lives may have written it
        in a way of its own.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # it has just gone, or is no file of ours
            return None
        is_alive = _is_locked(fd)
        try:
            claim = msgspec.json.decode(os.read(fd, _LIMIT_BYTES), type=HostClaim)
            ipaddress.IPv4Network(claim.pool_network)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            if not is_alive:
                path.unlink(missing_ok=True)
            return None
        finally:
            os.close(fd)
        return claim, is_alive

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # held for a few milliseconds by any manager
            yield
        finally:
            os.close(fd)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _has_containers(claim: HostClaim) -> bool:
    """Whether a container of the depot runs. One of a later version counts as running."""
    with suppress(OSError):
        return any(map(_runs, Path(claim.depot_dir).iterdir()))
    return False


def _runs(directory: Path) -> bool:
    try:
        found = snapshot.read(directory)
    except snapshot.LaterSnapshot:
        return True
    except SnapshotError:
        return False
    if found.boot_id != snapshot.boot_id() or not found.pid:
        return False
    try:
        return snapshot.start_ticks(found.pid) == found.pid_start_ticks and not _is_zombie(found.pid)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_zombie(pid: int) -> bool:
    """Ended, and not yet reaped by its parent."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
