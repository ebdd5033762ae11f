"""How a host is to be used: what the caller of `Depot.open` says, and what of it each part is told."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from container.defaults import CGROUP_PARENT, FIREWALL, POOL_NETWORK, TABLE
from container.network import NetworkOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class DepotSettings:
    """How a host is to be used. ``ports``: first and count of the host's ports to publish on; 0: above the
    ephemeral. ``uplinks``: the interfaces to its peers; none: where routes lead, and that of ``reached_at``.
    """

    depot_dir: Path
    templates_dir: Path
    cgroup_parent: str = CGROUP_PARENT
    table: str = TABLE
    firewall: str = FIREWALL
    pool_network: str = POOL_NETWORK
    release_delay_s: float = 5.0
    mtu: int = 1500
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] | None = None
    dns_options: tuple[str, ...] | None = None
    allow_networks: tuple[str, ...] = ()
    allow_host_access: bool = False
    publish_to_host_only: bool = False
    uplinks: tuple[str, ...] = ()
    reached_at: str | None = None
    port_first: int = 0
    port_count: int = 0
    uid_first: int = 1_000_000_000
    uid_count: int = 16_384
    disk_limits: bool = True
    wshd_binary: Path | None = None
    #: How often each pid 1 is asked whether it answers; and how long it may be silent until its container is killed.
    guard_period_s: float = 10.0
    silence_s: float = 30.0


def beside(depot_dir: Path, suffix: str) -> Path:
    """A file of the depot's own: what lies in the depot is taken for a container."""
    return depot_dir.with_name(f"{depot_dir.name}.{suffix}")


def network_settings(
    settings: DepotSettings,
    dns_servers: tuple[str, ...],
    port_rests: Callable[[int], bool],
    other_forwarding: Callable[[], Collection[Path]] = tuple,
) -> NetworkOptions:
    """``dns_servers``: as they were found. ``port_rests``: whether a route to a port may still stand. Pure.

    ``other_forwarding``: where other depots record what they opened for forwarding.
    """
    return NetworkOptions(
        pool_network=settings.pool_network,
        mtu=settings.mtu,
        dns_servers=dns_servers,
        allow_networks=settings.allow_networks,
        allow_host_access=settings.allow_host_access,
        publish_to_host_only=settings.publish_to_host_only,
        port_first=settings.port_first,
        port_count=settings.port_count,
        port_rest_s=settings.release_delay_s,
        port_rests=port_rests,
        uplinks=settings.uplinks,
        reached_at=settings.reached_at,
        firewall=settings.firewall,
        table=settings.table,
        forwarding_file=beside(settings.depot_dir, "forwarding"),
        other_forwarding=other_forwarding,
    )
