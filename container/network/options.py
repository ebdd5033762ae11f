"""How the containers' network is to be made: what the caller of `Networks.open` decides."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from container.defaults import FIREWALL, POOL_NETWORK, TABLE


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How the containers' network is to be made.

    ``mtu`` in bytes. ``port_first``, ``port_count``: the pool of host ports; 0: above the ephemeral ports.
    ``port_rest_s``: for how long a port that was given back is not given out again; ``port_rests``: whether the caller
    has another reason not to give out a port yet. ``uplinks``: the interfaces to the host's peers; empty: those that
    routes lead to, and the one of the address ``reached_at``. ``forwarding_file``: where the interfaces are recorded
    that were opened for forwarding; ``other_forwarding``: where other depots of this network namespace record theirs.
    ``firewall``: the back end, by its name in backends.py. ``table``: the name of the depot's firewall tables.
    """

    pool_network: str = POOL_NETWORK
    mtu: int = 1500
    dns_servers: tuple[str, ...] = ()
    allow_networks: tuple[str, ...] = ()
    allow_host_access: bool = False
    publish_to_host_only: bool = False
    port_first: int = 0
    port_count: int = 0
    port_rest_s: float = 0.0
    port_rests: Callable[[int], bool] = lambda _: False
    uplinks: tuple[str, ...] = ()
    reached_at: str | None = None
    forwarding_file: Path | None = None
    other_forwarding: Callable[[], Collection[Path]] = tuple
    firewall: str = FIREWALL
    table: str = TABLE
