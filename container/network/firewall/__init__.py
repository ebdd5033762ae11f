"""The firewall behind one interface; nftables now, iptables when the container manager's issue brings it."""

from __future__ import annotations

from typing import Protocol


class FirewallError(RuntimeError):
    """The kernel refused a change, or there is nothing that could make it; the text says why, and in what."""


class Firewall(Protocol):
    """Applies whole transactions, one at a time: the next is asked for when the last has been answered."""

    @property
    def author(self) -> str:
        """The name by which the kernel tells of our changes."""

    async def apply(self, text: str) -> None:
        """All of ``text`` or nothing. FirewallError: refused."""

    async def close(self) -> None:
        """The rules stay."""
