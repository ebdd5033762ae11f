"""The firewall back ends by name. A new back end is one more row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from container.network.firewall import Firewall
from container.network.firewall.nftables import Nftables

DEFAULT: Final = "nftables"
BACK_ENDS: Final[Mapping[str, Callable[[], Firewall]]] = {DEFAULT: Nftables}
