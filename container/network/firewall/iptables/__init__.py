"""iptables: chains of our own in mangle, filter and nat, and two xfrm policies (docs/network.md, "The rule set of iptables").

`text.py` writes rules from values, `programs.py` runs iptables-restore and iptables-save, `xfrm.py` sets the policies that
close everything after a flush, `watch.py` sees what others change, `backend.py` puts them together.
"""

from __future__ import annotations

from container.network.firewall.iptables.backend import Iptables
from container.network.firewall.iptables.programs import present

__all__ = ["Iptables", "present"]
