"""nftables: two tables of our own, written through libnftables (docs/network.md, "The rule set of nftables").

`text.py` writes rules from values, `library.py` hands text to the kernel, `foreign.py` looks at the chains of others,
`backend.py` puts them together. Nothing outside of this folder knows nft's syntax or names.
"""

from __future__ import annotations

from container.network.firewall.nftables.backend import Nftables
from container.network.firewall.nftables.foreign import foreign_drops
from container.network.firewall.nftables.library import is_usable

__all__ = ["Nftables", "foreign_drops", "is_usable"]
