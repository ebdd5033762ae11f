"""Defaults of a host that both the library and its callers name, each written once."""

from __future__ import annotations

from typing import Final

#: The network from which containers get their addresses.
POOL_NETWORK: Final = "10.254.0.0/16"
#: The name of a depot's firewall tables.
TABLE: Final = "garrison"
#: The directory below each cgroup mount that holds the cgroups of all containers.
CGROUP_PARENT: Final = "garrison"
