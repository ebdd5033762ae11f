"""The network of containers: routed veth pairs, nftables, published ports (ARCHITECTURE.md, network)."""

from __future__ import annotations

from container.network.firewall import FirewallError
from container.network.networks import Link, Networks, NetworkSettings, Restored
from container.network.ports import NoPorts, PortTaken

__all__ = ["FirewallError", "Link", "NetworkSettings", "Networks", "NoPorts", "PortTaken", "Restored"]
