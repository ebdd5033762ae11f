"""Defaults of a host that both the library and its callers name, each written once, and what values they may have."""

from __future__ import annotations

from typing import Final, Literal

#: The network from which containers get their addresses.
POOL_NETWORK: Final = "10.254.0.0/16"
#: A firewall back end (docs/network.md, "Firewall back ends"): ``iptables`` is the variant that the host's own program is, ``auto``
#: is nftables where that can be used, else iptables.
FirewallName = Literal["nftables", "iptables", "iptables-nft", "iptables-legacy", "auto"]
FIREWALL: Final = "nftables"
#: The name of a depot's firewall tables, and which names are possible.
TABLE: Final = "garrison"
TABLE_PATTERN: Final = r"^[a-z][a-z0-9_]{0,23}$"
#: The directory below each cgroup mount that holds the cgroups of all containers.
CGROUP_PARENT: Final = "garrison"
