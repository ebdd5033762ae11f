"""A firewall back end in memory. Tests run `Networks` with it and with nftables, so that `Networks` depends on neither."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from container.network import FirewallError
from container.network.policy import Policy, Ruleset
from container.spec import PortMapping


@dataclass
class InMemoryFirewall:
    sees_true_gateway = False
    can_shape = True

    """Refuses what the kernel refuses: to publish a port twice, and a change whose ``before`` is not what is in force.

    ``refuses``: True makes the change fail. ``calls``: the names of the calls so far.
    """

    held: Ruleset | None = None
    calls: list[str] = field(default_factory=list)
    refuses: Callable[[Ruleset], bool] = lambda _: False
    _on_change: Callable[[str], None] = lambda _: None

    async def ensure(self, policy: Policy) -> bool:
        if self.held is not None:
            return False
        self.held = Ruleset(policy)
        return True

    async def commit(self, before: Ruleset, after: Ruleset) -> None:
        self.calls.append("commit")
        if self.held != before:
            raise FirewallError("the rule set is not what the caller expects")
        self._hold(after)

    async def replace(self, ruleset: Ruleset, interfaces: Collection[str]) -> None:
        self.calls.append("replace")
        self._hold(ruleset)

    def _hold(self, ruleset: Ruleset) -> None:
        ports = [(one.protocol, one.host_port) for one in _ports(ruleset)]
        if len(ports) != len(set(ports)):
            raise FirewallError("a port is published already")
        if self.refuses(ruleset):
            raise FirewallError("refused")
        self.held = ruleset

    def foreign_changes(self, on_change: Callable[[str], None]) -> Callable[[], None]:
        self._on_change = on_change

        def end() -> None:
            self._on_change = lambda _: None

        return end

    def flush(self, by: str = "somebody") -> None:
        """Remove all rules, as another program on the host could."""
        self.held = None
        self._on_change(by)

    async def remove(self) -> None:
        self.held = None

    async def close(self) -> None:
        self.calls.append("close")

    @property
    def host_ports(self) -> set[int]:
        """The published ports."""
        return set() if self.held is None else {one.host_port or 0 for one in _ports(self.held)}


def _ports(ruleset: Ruleset) -> list[PortMapping]:
    return [mapping for link in ruleset.links.values() for mapping in link.ports]
