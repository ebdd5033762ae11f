"""The contract of a firewall back end (docs/network.md, "Firewall back ends").

`networks.py` decides what the firewall holds and when it changes: it batches changes, keeps the ruleset that the kernel
accepted last, and rewrites everything after somebody else changed it. A back end turns values into what the kernel
takes, and nothing more. `backends.py` lists the back ends by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from container.errors import ContainerError
from container.network.policy import Policy, Ruleset


class FirewallError(ContainerError, RuntimeError):
    """The kernel refused a change, or the back end cannot work on this host; the text says what and why."""


class Firewall(Protocol):
    """One firewall of one network namespace. The caller waits for each call before it makes the next.

    Every change is all or nothing: after a FirewallError the kernel holds what it held before.
    """

    #: Whether a container's packets must come to the host end's own MAC (link.py, `GATEWAY_MAC`).
    sees_true_gateway: bool
    #: Whether it can lead a link's packets through an ifb (`LinkRules.shaped`).
    can_shape: bool

    async def ensure(self, policy: Policy) -> bool:
        """Makes an empty firewall that enforces the policy, unless one of ours stands already.

        True: it was made now. False: one stands, perhaps of another version, and was not touched. FirewallError.
        """

    async def commit(self, before: Ruleset, after: Ruleset) -> None:
        """Makes ``after`` of ``before``, which the kernel is believed to hold.

        FirewallError: refused, also when the kernel holds something else than ``before``.
        """

    async def replace(self, ruleset: Ruleset, interfaces: Collection[str]) -> None:
        """Makes everything anew in one transaction, whatever stood there before.

        ``interfaces``: those of the links that exist now; some kernels refuse rules for one that does not.
        FirewallError: refused; one of the interfaces may have gone meanwhile.
        """

    def foreign_changes(self, on_change: Callable[[str], None]) -> Callable[[], None]:
        """From now on ``on_change`` is called in the running loop after others have changed what is ours.

        Its argument names who did it, or says why that is not known. Returns a function that ends it.
        """

    async def remove(self) -> None:
        """Removes all that is ours. It is no error when nothing is there. FirewallError."""

    async def close(self) -> None:
        """Gives back what the back end holds in this process. The rules stay in the kernel."""
