"""The firewall back ends by name. A new back end is one more row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from container.network.firewall import Firewall, FirewallError
from container.network.firewall.iptables import Iptables
from container.network.firewall.nftables import Nftables, is_usable
from container.network.firewall.nftables import foreign_drops as foreign_drops

DEFAULT: Final = "nftables"
AUTO: Final = "auto"
BACK_ENDS: Final[Mapping[str, Callable[[str], Firewall]]] = {
    DEFAULT: Nftables,
    "iptables": Iptables,
    "iptables-nft": lambda table: Iptables(table, "nft"),
    "iptables-legacy": lambda table: Iptables(table, "legacy"),
}
#: What a configuration may name.
NAMES: Final = (*BACK_ENDS, AUTO)


def chosen() -> str:
    """What ``auto`` means on this host: nftables if its library is there and the kernel answers it, else iptables."""
    return DEFAULT if is_usable() else "iptables"


def back_end(name: str, table: str) -> Firewall:
    """The back end of that name; ``auto``: nftables where the host has it, else iptables.

    ``table``: how the depot's tables are called. FirewallError: there is none of that name.
    """
    if name == AUTO:
        name = chosen()
    if name not in BACK_ENDS:
        raise FirewallError(f"firewall: expected one of {', '.join(NAMES)}, got {name!r}")
    return BACK_ENDS[name](table)
