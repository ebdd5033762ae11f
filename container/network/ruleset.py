"""What the firewall is to hold, as a value, and each change to it as text. Pure; networks.py carries it out.

A change is made on a copy, and the copy takes the place of the original once the kernel has said yes: there is nothing to
be undone after a refusal. Chains are counted, so that a shared one comes with its first user and goes with its last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

from container.network import rules
from container.network.rules import Chain, Egress, Member, Policy
from container.spec import PortMapping


class Ruleset:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._members: dict[str, Member] = {}
        self._users: Counter[Chain] = Counter()
        self.guarded: frozenset[str] = frozenset()
        """Uplinks by which a stranger must not pass (forwarding.py)."""

    def copy(self) -> Ruleset:
        twin = Ruleset(self._policy)
        twin._members = self._members.copy()
        twin._users = self._users.copy()
        twin.guarded = self.guarded
        return twin

    def __len__(self) -> int:
        return len(self._members)

    def find(self, link_id: str) -> Member | None:
        return self._members.get(link_id)

    @property
    def interfaces(self) -> list[str]:
        return [member.interface for member in self._members.values()]

    # Changes; each returns the text that makes it.

    def add(self, member: Member) -> str:
        assert member.link_id not in self._members
        self._members[member.link_id] = member
        text = self._use(member.egress) + rules.add_egress(member, member.egress)
        text += "".join(rules.add_port(member, mapping) for mapping in member.ports)
        return text + rules.add_ingress(member)

    def publish(self, link_id: str, mapping: PortMapping) -> str:
        member = self._members[link_id]
        self._members[link_id] = replace(member, ports=(*member.ports, mapping))
        return rules.add_port(member, mapping)

    def set_egress(self, link_id: str, egress: Egress) -> str:
        member = self._members[link_id]
        self._members[link_id] = replace(member, egress=egress)
        text = self._use(egress)
        text += rules.delete_egress(member, member.egress) + rules.add_egress(member, egress)
        return text + self._leave(member.egress)

    def remove(self, link_id: str) -> str:
        """Idempotent."""
        member = self._members.pop(link_id, None)
        if member is None:
            return ""
        text = rules.delete_ingress(member) + rules.delete_egress(member, member.egress)
        text += "".join(rules.delete_port(member, mapping) for mapping in member.ports)
        return text + self._leave(member.egress)

    def guard(self, uplinks: frozenset[str]) -> str:
        self.guarded = uplinks
        return rules.set_guarded(uplinks)

    def whole(self, interfaces: Collection[str]) -> str:
        """Everything anew, in one transaction. A container whose interface is not there (any more) has no gate."""
        members = self._members.values()
        text = rules.base(self._policy) + (rules.set_guarded(self.guarded) if self.guarded else "")
        text += "".join(rules.add_chain(chain) for chain in self._users)
        for member in members:
            text += rules.add_egress(member, member.egress)
            text += "".join(rules.add_port(member, mapping) for mapping in member.ports)
        return text + "".join(
            rules.add_ingress(member) for member in members if member.interface in interfaces
        )

    def _use(self, egress: Egress) -> str:
        text = "".join(rules.add_chain(chain) for chain in _distinct(egress) if not self._users[chain])
        self._users.update(egress.chains)
        return text

    def _leave(self, egress: Egress) -> str:
        self._users.subtract(egress.chains)
        unused = [chain for chain in _distinct(egress) if not self._users[chain]]
        for chain in unused:
            del self._users[chain]
        return "".join(rules.delete_chain(chain) for chain in unused)


def _distinct(egress: Egress) -> Iterable[Chain]:
    """A list of single addresses makes one chain for both classes."""
    return dict.fromkeys(egress.chains)
