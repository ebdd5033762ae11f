"""What all containers of a depot share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from container.aio import Background, FileWatcher, Log
from container.cgroups import Cgroups
from container.disk import Disks
from container.network import Networks
from container.pools import AddressLease, IdLease, IdSource, LeasePool
from container.resolver import Resolver
from container.wshd import Launcher


@dataclass(slots=True)
class Shared:
    """Opened by `Depot.open`, closed by `Depot.close`. ``fault`` is called with the name of each rung before it is
    made; a test raises from it.
    """

    depot_dir: Path
    boot_id: str
    cgroups: Cgroups
    disks: Disks | None  # None: no disk limits; uppers are plain directories in the depot
    networks: Networks
    launcher: Launcher
    watcher: FileWatcher
    addresses: LeasePool[AddressLease]
    ids: LeasePool[IdLease]
    link_ids: IdSource
    resolver: Resolver
    seccomp: bytes
    background: Background
    log: Log
    fault: Callable[[str], None]
