"""The rule set as text for nft(8), written from values. Pure; backend.py applies it.

A packet of a container is judged in prerouting, before DNAT, where `ip daddr` still is the address that the job
dialled. One place so serves what is forwarded and what is for the host itself. Maps keyed by interface and address lead
to chains of permissions. These are named by a hash of their rules and shared, because the kernel validates the whole
table at each new rule: a thousand containers should have few chains. For the same reason a rule names one range of
ports and never an anonymous set. docs/network.md, "The rule set of nftables", explains each chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from container.network.policy import (
    INTERFACE_PREFIX,
    LOG_PREFIX,
    Egress,
    LinkRules,
    Permit,
    Permits,
    Policy,
    Ruleset,
    RulesetChange,
    shaper_of,
)
from container.spec import PortMapping, Protocol

_LINKS: Final = f'"{INTERFACE_PREFIX}*"'  # every host end of a link, of any depot


@dataclass(frozen=True, slots=True)
class Chain:
    """A list of rules that several containers may share."""

    rules: tuple[str, ...]

    @property
    def name(self) -> str:
        """The same for equal lists of rules."""
        return "r_" + hashlib.sha256("\n".join(self.rules).encode()).hexdigest()[:20]


@lru_cache(maxsize=4096)
def chain_of(permits: Permits) -> Chain:
    """The chain of a list of permissions; equal lists have the same chain."""
    return Chain(tuple(rule for permit in permits for rule in _rules(permit)))


def _rules(permit: Permit) -> Iterator[str]:
    match = " ".join(part for part in (_destination(permit), _protocol(permit)) if part)
    if permit.log:
        yield f'{match} ct state new log prefix "{LOG_PREFIX}"'.strip()
    yield f"{match} accept".strip()


def _destination(permit: Permit) -> str:
    if permit.is_everywhere:
        return ""
    return f"ip daddr {permit.first}" if permit.is_single else f"ip daddr {permit.first}-{permit.last}"


def _protocol(permit: Permit) -> str:
    protocol, ports = permit.protocol, permit.ports
    if protocol is Protocol.ALL:
        return ""
    if ports is not None:
        one = ports.first == ports.last
        return f"{protocol.value} dport {ports.first if one else f'{ports.first}-{ports.last}'}"
    words = [f"meta l4proto {protocol.value}"]
    if permit.icmp_type is not None:
        words.append(f"icmp type {permit.icmp_type}")
    if permit.icmp_code is not None:
        words.append(f"icmp code {permit.icmp_code}")
    return " ".join(words)


def _elements(values: Iterable[str]) -> str:
    listed = ", ".join(values)
    return f"elements = {{ {listed} }};" if listed else ""


def _chains(lists: Iterable[Permits]) -> Iterable[Chain]:
    return map(chain_of, lists)


def _verdicts(link: LinkRules, egress: Egress) -> Iterator[tuple[str, str]]:
    key = f'"{link.interface}" . {link.lease.container_ip}'
    for name, permits in (("m_outer", egress.outer), ("m_inner", egress.inner)):
        if permits:
            yield name, f"{key} : jump {chain_of(permits).name}"


def _port_key(mapping: PortMapping) -> str:
    return f"{mapping.protocol.value} . {mapping.host_port}"


@dataclass(frozen=True, slots=True)
class Tables:
    """Texts for the two tables of one depot, both of the name ``table``.

    Other depots have tables beside them, and their links have the same kind of name. So a rule about containers matches
    the depot's own pool of addresses too: what one depot refuses is never the traffic of another.
    """

    table: str

    def probe(self) -> str:
        """Refused where our tables are not."""
        return f"list chain inet {self.table} c_in\n"

    def base(self, policy: Policy) -> str:
        """Both tables, made anew in one transaction: what stood there before is gone.

        Published ports have no listener that could be bound to one address. `publish_to_host_only` therefore limits by
        which interface a packet may come: other containers come by our links and have rules of their own, and what the host
        itself sends passes c_out.
        """
        comes, goes = (
            f"iifname {_LINKS} ip saddr {policy.pool_network}",
            f"oifname {_LINKS} ip daddr {policy.pool_network}",
        )
        comes_by = f"iifname {_LINKS}" if policy.publish_to_host_only else ""
        host = "fib daddr type local accept" if policy.allow_host_access else ""
        return f"""
    add table inet {self.table}
    delete table inet {self.table}
    add table netdev {self.table}
    delete table netdev {self.table}
    table inet {self.table} {{
      set s_dns {{ type ipv4_addr; {_elements(policy.dns_servers)} }}
      set s_closed {{ type ipv4_addr; flags interval; auto-merge; {_elements(policy.closed)} }}
      set s_nets {{ type ipv4_addr; flags interval; auto-merge; {_elements(policy.allow_networks)} }}
      set s_uplinks {{ type ifname; }}
      map m_outer {{ type ifname . ipv4_addr : verdict; }}
      map m_inner {{ type ifname . ipv4_addr : verdict; }}
      map m_port {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
      chain c_reject {{
        meta l4proto tcp reject with tcp reset
        reject with icmp port-unreachable
      }}
      chain c_inner {{
        {host}
        ip daddr @s_nets accept
        iifname . ip saddr vmap @m_inner
        goto c_reject
      }}
      chain c_from {{
        ct state established,related accept
        ct state invalid drop
        meta l4proto {{ tcp, udp }} th dport 53 ip daddr @s_dns accept
        fib daddr type != unicast goto c_inner
        ip daddr @s_closed goto c_inner
        ip daddr @s_nets accept
        iifname . ip saddr vmap @m_outer
        goto c_reject
      }}
      chain c_in {{
        type filter hook prerouting priority -150;
        iifname {_LINKS} meta nfproto != ipv4 drop
        {comes} goto c_from
      }}
      chain c_to {{
        ct state established,related accept
        {comes} accept
        ct status dnat accept
        drop
      }}
      chain c_fwd {{
        type filter hook forward priority 0;
        oifname {_LINKS} meta nfproto != ipv4 drop
        {goes} goto c_to
        iifname @s_uplinks ct state established,related accept
        iifname @s_uplinks ct status dnat accept
        iifname @s_uplinks drop
      }}
      chain c_pre {{
        type nat hook prerouting priority -100;
        {comes_by} fib daddr type local dnat ip to meta l4proto . th dport map @m_port
      }}
      chain c_out {{
        type nat hook output priority -100;
        fib daddr type local dnat ip to meta l4proto . th dport map @m_port
      }}
      chain c_post {{
        type nat hook postrouting priority 100;
        {goes} ip saddr 127.0.0.0/8 masquerade
        {goes} iifname {_LINKS} ct status dnat masquerade
        oifname != {_LINKS} ip saddr {policy.pool_network} masquerade
      }}
    }}
    table netdev {self.table} {{ }}
    """

    def remove(self) -> str:
        """Both tables gone. Each is added first, so that it is no error when it is not there."""
        return "".join(
            f"add table {family} {self.table}\ndelete table {family} {self.table}\n"
            for family in ("inet", "netdev")
        )

    def change(self, changes: RulesetChange) -> str:
        """What makes one ruleset of another. Chains come before the elements that lead to them, and go after them."""
        text = "".join(map(self._add_chain, _chains(changes.lists_added)))
        for link in changes.removed:
            text += self._delete_gate(link) + self._delete_egress(link, link.egress)
            text += "".join(self._delete_port(mapping) for mapping in link.ports)
        for old, new in changes.altered:
            if old.shaped != new.shaped:
                text += self._add_gate(new)
            if old.egress != new.egress:
                text += self._delete_egress(old, old.egress) + self._add_egress(new, new.egress)
            text += "".join(self._delete_port(mapping) for mapping in old.ports if mapping not in new.ports)
            text += "".join(self._add_port(new, mapping) for mapping in new.ports if mapping not in old.ports)
        for link in changes.added:
            text += self._add_link(link) + self._add_gate(link)
        text += "".join(self._delete_chain(chain) for chain in _chains(changes.lists_removed))
        return text + ("" if changes.guarded is None else self._set_guarded(changes.guarded))

    def whole(self, ruleset: Ruleset, interfaces: Collection[str]) -> str:
        """Everything anew, in one transaction. A container whose interface or ifb is gone has no gate; its other parts stay
        until it is destroyed, so that what removes them finds them."""
        links = ruleset.links.values()
        text = self.base(ruleset.policy) + (self._set_guarded(ruleset.guarded) if ruleset.guarded else "")
        text += "".join(map(self._add_chain, _chains(ruleset.users)))
        text += "".join(map(self._add_link, links))
        return text + "".join(
            self._add_gate(link) for link in links if all(one in interfaces for one in link.devices)
        )

    def _set_guarded(self, uplinks: Iterable[str]) -> str:
        """Uplinks that forward only what is for containers.

        Established flows pass, and so do published ports of another router: a flow that begins while no manager runs is not
        cut off later.
        """
        text = f"flush set inet {self.table} s_uplinks\n"
        names = ", ".join(f'"{name}"' for name in sorted(uplinks))
        return text + (f"add element inet {self.table} s_uplinks {{ {names} }}\n" if names else "")

    def _add_chain(self, chain: Chain) -> str:
        lines = [f"add chain inet {self.table} {chain.name}"]
        lines += [f"add rule inet {self.table} {chain.name} {rule}" for rule in chain.rules]
        return "\n".join(lines) + "\n"

    def _delete_chain(self, chain: Chain) -> str:
        return f"delete chain inet {self.table} {chain.name}\n"

    def _add_link(self, link: LinkRules) -> str:
        return self._add_egress(link, link.egress) + "".join(
            self._add_port(link, mapping) for mapping in link.ports
        )

    def _add_egress(self, link: LinkRules, egress: Egress) -> str:
        return "".join(
            f"add element inet {self.table} {name} {{ {text} }}\n" for name, text in _verdicts(link, egress)
        )

    def _delete_egress(self, link: LinkRules, egress: Egress) -> str:
        return "".join(
            f"delete element inet {self.table} {name} {{ {text} }}\n"
            for name, text in _verdicts(link, egress)
        )

    def _add_port(self, link: LinkRules, mapping: PortMapping) -> str:
        to = f"{link.lease.container_ip} . {mapping.container_port}"
        return f"add element inet {self.table} m_port {{ {_port_key(mapping)} : {to} }}\n"

    def _delete_port(self, mapping: PortMapping) -> str:
        return f"delete element inet {self.table} m_port {{ {_port_key(mapping)} }}\n"

    def _add_gate(self, link: LinkRules) -> str:
        """A link's ingress chain: only the container's own address passes.

        Packets arrive addressed to a MAC that is not the host's (link.py, `GATEWAY_MAC`). Marking them as "for this host"
        is what lets them in at all, so a link without this chain is closed. The mark outlasts the way through an ifb, after
        which no ingress chain is asked again. Flushed, so that the rule replaces one that stands.
        """
        chain = f"i_{link.link_id}"
        hook = f'type filter hook ingress device "{link.interface}" priority -500; policy drop;'
        verdict = f'fwd to "{shaper_of(link.link_id)}"' if link.shaped else "accept"
        return (
            f"add chain netdev {self.table} {chain} {{ {hook} }}\n"
            f"flush chain netdev {self.table} {chain}\n"
            f"add rule netdev {self.table} {chain} ip saddr {link.lease.container_ip} meta pkttype set host {verdict}\n"
        )

    def _delete_gate(self, link: LinkRules) -> str:
        """Some kernels drop the chain with its device and others keep it. Added first, it is there in either case."""
        chain = f"i_{link.link_id}"
        return "".join(f"{verb} chain netdev {self.table} {chain}\n" for verb in ("add", "flush", "delete"))
