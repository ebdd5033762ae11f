"""The firewall behind one interface; nftables now, iptables when the container manager's issue brings it."""

from __future__ import annotations

from typing import Protocol


class FirewallError(RuntimeError):
    """The kernel refused a change; the text is its own, with the line."""


class Firewall(Protocol):
    """Applies whole transactions. Called from one event loop; calls may overlap and keep their order."""

    async def apply(self, text: str) -> None:
        """All of ``text`` or nothing. FirewallError: refused."""

    def worker_id(self) -> int:
        """Thread id that the kernel reports as the author of our changes; 0 before the first."""

    async def close(self) -> None: ...
