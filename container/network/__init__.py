"""The network of containers: routed veth pairs, a firewall, published ports (docs/network.md)."""

from __future__ import annotations

from container.network.firewall import FirewallError
from container.network.networks import Link, Networks, Restored
from container.network.options import NetworkOptions
from container.network.ports import NoPorts, PortTaken

__all__ = [
    "FirewallError",
    "Link",
    "NetworkOptions",
    "Networks",
    "NoPorts",
    "PortTaken",
    "Restored",
]
