"""The firewall back ends by name. A new back end is one more row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from container.network.firewall import Firewall, FirewallError
from container.network.firewall.nftables import Nftables

DEFAULT: Final = "nftables"
BACK_ENDS: Final[Mapping[str, Callable[[str], Firewall]]] = {DEFAULT: Nftables}


def back_end(name: str, table: str) -> Firewall:
    """The back end of that name. ``table``: how the depot's tables are called. FirewallError: there is none of that name."""
    if name not in BACK_ENDS:
        raise FirewallError(f"firewall: expected one of {', '.join(BACK_ENDS)}, got {name!r}")
    return BACK_ENDS[name](table)
