"""What a container consists of, the table of its states, and what is reported of it. Values only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from container import linux
from container.cgroups import CgroupSet
from container.cgroups.figures import Pressure, Throttling
from container.disk import Disk
from container.errors import ContainerError
from container.events import EventKind
from container.network import Link, Traffic
from container.pools import AddressLease, IdLease
from container.snapshot import Phase, Snapshot
from container.spec import Bandwidth, CpuCap, EgressRule, Limits, PortMapping


class ContainerState(StrEnum):
    """The table `ACTIONS` says what may be done in each, and where it leads."""

    ACTIVE = "active"
    STOPPED = "stopped"
    DEAD = "dead"
    """pid 1 is dead. Files of the home and measurements can still be read."""
    DESTROYING = "destroying"
    DESTROY_FAILED = "destroy failed"
    """A piece could not be removed. The depot tries again, with growing pauses and at the next `Depot.destroy`."""
    DESTROYED = "destroyed"


class Action(StrEnum):
    STOP = "stop"
    DIE = "die"
    DESTROY = "destroy"
    FAIL = "fail"
    END = "end"
    SPAWN = "spawn"
    CHANGE = "change"
    LOOK = "look"


_S, _A = ContainerState, Action
ACTIONS: Final[Mapping[tuple[ContainerState, Action], ContainerState]] = {
    (_S.ACTIVE, _A.SPAWN): _S.ACTIVE,
    (_S.ACTIVE, _A.CHANGE): _S.ACTIVE,
    (_S.ACTIVE, _A.LOOK): _S.ACTIVE,
    (_S.ACTIVE, _A.STOP): _S.STOPPED,
    (_S.ACTIVE, _A.DIE): _S.DEAD,
    (_S.ACTIVE, _A.DESTROY): _S.DESTROYING,
    (_S.STOPPED, _A.CHANGE): _S.STOPPED,
    (_S.STOPPED, _A.LOOK): _S.STOPPED,
    (_S.STOPPED, _A.STOP): _S.STOPPED,
    (_S.STOPPED, _A.DIE): _S.DEAD,
    (_S.STOPPED, _A.DESTROY): _S.DESTROYING,
    (_S.DEAD, _A.LOOK): _S.DEAD,
    (_S.DEAD, _A.STOP): _S.DEAD,
    (_S.DEAD, _A.DIE): _S.DEAD,
    (_S.DEAD, _A.DESTROY): _S.DESTROYING,
    (_S.DESTROYING, _A.DIE): _S.DESTROYING,
    (_S.DESTROYING, _A.FAIL): _S.DESTROY_FAILED,
    (_S.DESTROYING, _A.END): _S.DESTROYED,
    (_S.DESTROY_FAILED, _A.DIE): _S.DESTROY_FAILED,
    (_S.DESTROY_FAILED, _A.DESTROY): _S.DESTROYING,
    (_S.DESTROYED, _A.DIE): _S.DESTROYED,
}


class WrongState(ContainerError, RuntimeError):
    """The container is in no state for that (any more)."""


class NoSuchRule(ContainerError, LookupError):
    """The container has no such published port or egress rule; the text names it."""


@dataclass(frozen=True, slots=True)
class Info:
    """A measurement of one moment. ``memory_bytes``: rss + cache - inactive_file.

    ``traffic`` None: it has no network, or its link is gone. ``bandwidth_in``, ``bandwidth_out``: the limits that the kernel has
    for its packets into the container and out of it; None: no limit. ``cpu_cap``: the hard limit that is in force, and
    ``throttling`` how it has worked; None: there is none. ``pressure``: by resource; empty where the kernel does not count it.
    """

    state: ContainerState
    events: tuple[EventKind, ...]
    job_ids: tuple[str, ...]
    memory_bytes: int
    memory_limit_bytes: int | None
    memory_stat: Mapping[str, int]
    oom_kills: int
    cpu_ns: int
    cpu_user_ns: int
    cpu_system_ns: int
    pids: int
    disk_bytes: int
    disk_inodes: int
    traffic: Traffic | None = None
    bandwidth_in: Bandwidth | None = None
    bandwidth_out: Bandwidth | None = None
    cpu_cap: CpuCap | None = None
    throttling: Throttling | None = None
    pressure: Mapping[str, Pressure] = field(default_factory=dict)


@dataclass(slots=True)
class Parts:
    """What a container is made of; filled rung by rung (create.py)."""

    handle: str
    link_id: str
    hostname: str
    directory: Path
    ids: IdLease
    limits: Limits
    boot_id: str
    has_home: bool
    egress: tuple[EgressRule, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    lease: AddressLease | None = None
    ports: tuple[PortMapping, ...] = ()
    link: Link | None = None
    disk: Disk | None = None
    cgroup: CgroupSet | None = None
    dir_fd: int = -1
    root_fd: int = -1
    home_fd: int = -1
    pid: int = 0
    pidfd: int = -1
    pid_start_ticks: int = 0
    stopped: bool = False
    events: tuple[str, ...] = ()

    def snapshot(self, phase: Phase) -> Snapshot:
        return Snapshot(
            phase=phase,
            boot_id=self.boot_id,
            handle=self.handle,
            link_id=self.link_id,
            ids_first=self.ids.first,
            network=self.lease.network if self.lease is not None else None,
            hostname=self.hostname,
            limits=self.limits,
            ports=self.ports,
            egress=self.egress,
            properties=dict(self.properties),
            pid=self.pid,
            pid_start_ticks=self.pid_start_ticks,
            home=self.has_home,
            stopped=self.stopped,
            events=self.events,
        )

    def own_mounts(self) -> frozenset[int]:
        """Ids of the root's mount and of the home's, which the descriptors hold. A home that is no mount of its own counts
        for nothing: root inside could have put a bind in its place before a manager took the container up.
        """
        held = (self.root_fd, self.home_fd) if self.has_home else (self.root_fd,)
        return frozenset(linux.mount_id(fd) for fd in held if fd >= 0)

    @property
    def spool(self) -> Path:
        return self.directory / "spool"

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        for name in ("dir_fd", "root_fd", "home_fd", "pidfd"):
            if (fd := getattr(self, name)) >= 0:
                os.close(fd)
                setattr(self, name, -1)
