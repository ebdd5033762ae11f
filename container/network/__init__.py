"""The network of containers: routed veth pairs, a firewall, published ports (docs/network.md)."""

from __future__ import annotations

from container.network.firewall import FirewallError
from container.network.link import Link, Restored
from container.network.networks import Networks
from container.network.options import NetworkOptions
from container.network.ports import NoPorts, PortTaken
from container.network.shaping import ShapingError, Traffic

__all__ = [
    "FirewallError",
    "Link",
    "NetworkOptions",
    "Networks",
    "NoPorts",
    "PortTaken",
    "Restored",
    "ShapingError",
    "Traffic",
]
