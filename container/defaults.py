"""Defaults of a host that both the library and its callers name, each written once."""

from __future__ import annotations

from typing import Final

#: The containers' addresses.
POOL_NETWORK: Final = "10.254.0.0/16"
#: The directory of all containers' cgroups, below each mount.
CGROUP_PARENT: Final = "garrison"
