"""What the firewall must enforce, as values. Pure; no back end's syntax appears here.

A host has one :class:`Ruleset`: its :class:`Policy`, and for each link the addresses it may reach and the ports that
lead to it. A change makes a new ruleset from the old one, so a refused change leaves nothing to undo. :func:`changed`
is the difference of two rulesets; a back end turns that difference into one transaction.

Permissions fall into two classes, so that their order does not matter across the classes (docs/network.md, "Egress
rules"). A permission that lies inside a closed range (the pool, link-local, loopback) belongs to the *inner* class.
Every other permission belongs to the *outer* class. A single address belongs to both, because it may be, or may
become, an address of the host. A permission for 0.0.0.0/0 therefore opens neither the host nor another container.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import compress
from operator import is_not
from typing import Final, TypeAlias

from container.pools import AddressLease
from container.spec import EgressRule, PortMapping, PortRange, Protocol, parse_network

#: Only a permission that lies inside one of these opens it: "this" network, loopback, link-local (metadata services).
ALWAYS_CLOSED: Final = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16")
#: What the kernel's log shows before a packet that a logging permission let through.
LOG_PREFIX: Final = "garrison "
#: The name of every host end of a link begins so; back ends match on it.
INTERFACE_PREFIX: Final = "w-"


def interface_of(link_id: str) -> str:
    """The name of a link's end on the host (at most 15 characters, IFNAMSIZ)."""
    return f"{INTERFACE_PREFIX}{link_id}-0"


def shaper_of(link_id: str) -> str:
    """The name of the ifb that a link's packets pass on their way out, where they are limited."""
    return f"{INTERFACE_PREFIX}{link_id}-2"


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for all containers of a host. Networks are texts that `parse_network` takes."""

    pool_network: str
    dns_servers: tuple[str, ...] = ()
    allow_networks: tuple[str, ...] = ()
    allow_host_access: bool = False
    publish_to_host_only: bool = False

    @property
    def closed(self) -> tuple[str, ...]:
        """The closed ranges."""
        return (self.pool_network, *ALWAYS_CLOSED)


AddressRange: TypeAlias = tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]


@lru_cache(maxsize=16)
def _ranges(networks: tuple[str, ...]) -> tuple[AddressRange, ...]:
    return tuple(map(parse_network, networks))


@dataclass(frozen=True, slots=True)
class Permit:
    """One permission: addresses ``first`` to ``last``, and a protocol. ``ports`` None: all of them."""

    first: ipaddress.IPv4Address
    last: ipaddress.IPv4Address
    protocol: Protocol
    ports: PortRange | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    log: bool = False

    @property
    def is_everywhere(self) -> bool:
        """All of IPv4."""
        return int(self.first) == 0 and int(self.last) == 0xFFFFFFFF

    @property
    def is_single(self) -> bool:
        """One address."""
        return self.first == self.last

    def lies_within(self, ranges: Sequence[AddressRange]) -> bool:
        """Whether all its addresses are in one of the ranges."""
        return any(low <= self.first and self.last <= high for low, high in ranges)


#: In order: the first that matches decides.
Permits: TypeAlias = tuple[Permit, ...]


@dataclass(frozen=True, slots=True)
class Egress:
    """What a container may reach, by class. Empty: nothing is allowed there."""

    outer: Permits = ()
    inner: Permits = ()

    @property
    def lists(self) -> tuple[Permits, ...]:
        """The lists that hold something, each once: single addresses alone make the same list for both classes."""
        return tuple(dict.fromkeys(permits for permits in (self.outer, self.inner) if permits))


def make_egress(rules: Sequence[EgressRule], policy: Policy) -> Egress:
    """The permissions of a rule list, in its order, by class.

    Rules that log come first. A plain rule before them that matches the same packet would hide them, and nothing would
    be logged (docs/network.md, "Egress rules").
    """
    closed = _ranges(policy.closed)
    outer: list[Permit] = []
    inner: list[Permit] = []
    for rule in sorted(rules, key=lambda rule: not rule.log):
        for permit in _permits(rule):
            within = permit.lies_within(closed)
            if within or permit.is_single:
                inner.append(permit)
            if not within:
                outer.append(permit)
    return Egress(tuple(outer), tuple(inner))


def _permits(rule: EgressRule) -> Iterator[Permit]:
    """One for each network and port range. An ICMP code without a type is not looked at."""
    icmp_type = rule.icmp_type if rule.protocol is Protocol.ICMP else None
    icmp_code = rule.icmp_code if icmp_type is not None else None
    for network in rule.networks or ("0.0.0.0/0",):
        first, last = parse_network(network)
        for ports in rule.ports or (None,):
            yield Permit(first, last, rule.protocol, ports, icmp_type, icmp_code, rule.log)


@dataclass(frozen=True, slots=True)
class LinkRules:
    """What the firewall enforces for one container's link.

    ``shaped``: what the gate lets in goes through the link's ifb (docs/network.md, "Bandwidth").
    """

    interface: str
    link_id: str
    lease: AddressLease
    egress: Egress
    ports: tuple[PortMapping, ...] = ()
    shaped: bool = False

    @property
    def devices(self) -> tuple[str, ...]:
        """The host's interfaces that its gate names."""
        return (self.interface, shaper_of(self.link_id)) if self.shaped else (self.interface,)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All that the firewall of a host is to hold. Each change returns a new ruleset.

    ``guarded``: uplinks that forward packets of containers and of nothing else (docs/network.md, "Forwarding").
    ``users``: how many times each list of permissions is used; back ends share what is equal.
    """

    policy: Policy
    links: Mapping[str, LinkRules] = field(default_factory=dict)
    guarded: frozenset[str] = frozenset()
    users: Mapping[Permits, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.links)

    def find(self, link_id: str) -> LinkRules | None:
        """The rules of a link; None: there is no such link."""
        return self.links.get(link_id)

    @property
    def interfaces(self) -> list[str]:
        """The host's interfaces of all links."""
        return [device for link in self.links.values() for device in link.devices]

    def add(self, *links: LinkRules) -> Ruleset:
        """With further links. They must be new."""
        assert not any(link.link_id in self.links for link in links)
        together = {**self.links, **{link.link_id: link for link in links}}
        return self._with(together, used=[link.egress for link in links])

    def remove(self, link_id: str) -> Ruleset:
        """Idempotent."""
        left = dict(self.links)
        link = left.pop(link_id, None)
        return self if link is None else self._with(left, unused=[link.egress])

    def publish(self, link_id: str, mapping: PortMapping) -> Ruleset:
        """With one more port of the host that leads to a link. Its host port must be set."""
        link = self.links[link_id]
        return self._with({**self.links, link_id: replace(link, ports=(*link.ports, mapping))})

    def unpublish(self, link_id: str, mapping: PortMapping) -> Ruleset:
        """Without a port that leads to a link. Idempotent."""
        link = self.links.get(link_id)
        if link is None or mapping not in link.ports:
            return self
        ports = tuple(one for one in link.ports if one != mapping)
        return self._with({**self.links, link_id: replace(link, ports=ports)})

    def set_egress(self, link_id: str, egress: Egress) -> Ruleset:
        """With other permissions for a link."""
        link = self.links[link_id]
        changed_links = {**self.links, link_id: replace(link, egress=egress)}
        return self._with(changed_links, used=[egress], unused=[link.egress])

    def shape(self, link_id: str, shaped: bool) -> Ruleset:
        """With a link's packets going through its ifb, or not. Unchanged: there is no such link, or it is so already."""
        link = self.links.get(link_id)
        if link is None or link.shaped == shaped:
            return self
        return self._with({**self.links, link_id: replace(link, shaped=shaped)})

    def guard(self, uplinks: frozenset[str]) -> Ruleset:
        """With exactly these uplinks guarded."""
        return replace(self, guarded=uplinks)

    def _with(
        self, links: Mapping[str, LinkRules], used: Sequence[Egress] = (), unused: Sequence[Egress] = ()
    ) -> Ruleset:
        users = dict(self.users)
        for permits in (permits for egress in used for permits in egress.lists):
            users[permits] = users.get(permits, 0) + 1
        for permits in (permits for egress in unused for permits in egress.lists):
            users[permits] -= 1
            if not users[permits]:
                del users[permits]
        return replace(self, links=links, users=users)


@dataclass(frozen=True, slots=True)
class RulesetChange:
    """What makes one ruleset of another. ``altered``: pairs of old and new. ``guarded`` None: as before."""

    removed: tuple[LinkRules, ...] = ()
    added: tuple[LinkRules, ...] = ()
    altered: tuple[tuple[LinkRules, LinkRules], ...] = ()
    lists_added: tuple[Permits, ...] = ()
    lists_removed: tuple[Permits, ...] = ()
    guarded: frozenset[str] | None = None


def changed(before: Ruleset, after: Ruleset) -> RulesetChange:
    """The difference of two rulesets of the same policy.

    A link that came back with another interface or address counts as removed and added.
    """
    removed = [before.links[one] for one in _differing(before, after) if one not in after.links]
    added: list[LinkRules] = []
    altered: list[tuple[LinkRules, LinkRules]] = []
    for link_id in _differing(after, before):
        old, new = before.links.get(link_id), after.links[link_id]
        if old is None:
            added.append(new)
        elif (old.interface, old.lease) != (new.interface, new.lease):
            removed.append(old)
            added.append(new)
        elif old != new:
            altered.append((old, new))
    return RulesetChange(
        tuple(removed),
        tuple(added),
        tuple(altered),
        tuple(permits for permits in after.users if permits not in before.users),
        tuple(permits for permits in before.users if permits not in after.users),
        after.guarded if after.guarded != before.guarded else None,
    )


def _differing(one: Ruleset, other: Ruleset) -> Iterator[str]:
    """Ids of links that are not the very same value in ``other``: few, since a change copies no link that it leaves alone."""
    return compress(one.links, map(is_not, one.links.values(), map(other.links.get, one.links)))
