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
from typing import Final

import msgspec

from container import snapshot
from container.locks import DepotBusy
from container.snapshot import SnapshotError

#: Gone after a boot, like everything that is claimed.
DIRECTORY: Final = Path("/run/garrison/depots")
_LIMIT_BYTES: Final = 1 << 16
_MOST_FILES: Final = 4096


class HostClaim(msgspec.Struct, frozen=True, kw_only=True):
    """``ports``, ``ids``: the first and the last of the host's. ``forwarding_file``: where its opened uplinks are recorded."""

    depot_dir: str
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

    def enter(self) -> tuple[str, ...]:
        """Claims everything, or nothing. Returns the tables that dead depots have left in the way, for the caller to remove.

        The caller has locked the depot's directory. DepotBusy: another depot has a part of it; the text names both. OSError.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            refused, left = [], []
            for other, is_alive in self._found():
                if not (both := overlaps(self._mine, other)):
                    continue
                if is_alive or _has_containers(other):
                    who = (
                        f"pid {other.pid}" if is_alive else "whose manager has ended and whose containers run"
                    )
                    refused.append(f"the depot {other.depot_dir} ({who}) has: {', '.join(both)}")
                elif other.table != self._mine.table:
                    left.append(other.table)
            if refused:
                raise DepotBusy(f"{self._mine.depot_dir}: {'; '.join(refused)}")
            self._write()
        return tuple(left)

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
        """Each other claim of this boot and network namespace, and whether its manager lives. Removes what nobody needs any more."""
        for path in sorted(self._directory.glob("*.json"))[:_MOST_FILES]:
            if path == self._path:
                continue
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:  # it has just gone, or is no file of ours
                continue
            try:
                is_alive = _is_locked(fd)
                claim = msgspec.json.decode(os.read(fd, _LIMIT_BYTES), type=HostClaim)
                ipaddress.IPv4Network(claim.pool_network)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                path.unlink(missing_ok=True)  # damaged: it says nothing that anybody could respect
                continue
            finally:
                os.close(fd)
            if not is_alive and not Path(claim.depot_dir).is_dir():
                path.unlink(missing_ok=True)
            elif (claim.boot, claim.netns) == (self._mine.boot, self._mine.netns):
                yield claim, is_alive

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
    """Whether a container of the depot runs. One that cannot be read counts as running: it may be of a later version."""
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
