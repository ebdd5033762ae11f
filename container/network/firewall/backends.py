"""The firewall back ends by name. A new back end is one more row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from container.defaults import FIREWALL
from container.network.firewall import Firewall, FirewallError
from container.network.firewall.iptables import Iptables, present
from container.network.firewall.nftables import Nftables, is_usable
from container.network.firewall.nftables import foreign_drops as foreign_drops

#: Each takes the name of the depot's tables.
BACK_ENDS: Final[Mapping[str, Callable[[str], Firewall]]] = {
    FIREWALL: Nftables,
    "iptables-nft": partial(Iptables, "nft"),
    "iptables-legacy": partial(Iptables, "legacy"),
}


def meant(name: str) -> tuple[str, str]:
    """The back end that a setting means on this host, and why; no reason: it names one itself. FirewallError: none that is here."""
    if name == "auto" and is_usable():
        return FIREWALL, "nftables can be used"
    if name not in ("auto", "iptables"):
        return name, ""
    if (variant := present()) is None:
        raise FirewallError("iptables: neither variant is installed; install the package iptables")
    why = "the host's iptables is this variant"
    return f"iptables-{variant}", why if name == "iptables" else f"nftables cannot be used; {why}"


def back_end(name: str, table: str) -> Firewall:
    """The back end of that name. ``table``: how the depot's tables are called. FirewallError: there is none of that name."""
    if name not in BACK_ENDS:
        raise FirewallError(f"firewall: expected one of {', '.join(BACK_ENDS)}, got {name!r}")
    return BACK_ENDS[name](table)
