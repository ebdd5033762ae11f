"""The firewall as text, made from values. Pure; nftables.py carries it out.

Decided in prerouting, before DNAT, where `ip daddr` is the address that the app dialled. Egress rules fall into two
classes, so that their order does not matter across them: what lies wholly inside a closed range (the pool, link-local, loopback) goes
to a container's *inner* chain, everything else to its *outer* one, a single address to both (it may be or become the host's own).
`0.0.0.0/0` therefore never opens the host or another container. Chains are named by a hash of their rules and shared: the kernel
validates the whole table at each new rule, so a thousand containers should have few.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from container.pools import AddressLease
from container.spec import EgressRule, PortMapping, PortRange, Protocol, parse_network

#: Never reached by a rule that also covers something else: "this" network, loopback, link-local (metadata services).
ALWAYS_CLOSED = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16")
TABLE = "garrison"


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for all containers of a host."""

    pool_network: str
    dns_servers: tuple[str, ...] = ()
    allow_networks: tuple[str, ...] = ()
    allow_host_access: bool = False
    publish_to_host_only: bool = False

    @property
    def closed(self) -> tuple[str, ...]:
        return (self.pool_network, *ALWAYS_CLOSED)


@dataclass(frozen=True, slots=True)
class Chain:
    """A list of rules that several containers may share."""

    rules: tuple[str, ...]

    @property
    def name(self) -> str:
        return "r_" + hashlib.sha256("\n".join(self.rules).encode()).hexdigest()[:20]


@dataclass(frozen=True, slots=True)
class Egress:
    """None: nothing is allowed there."""

    outer: Chain | None
    inner: Chain | None

    @property
    def chains(self) -> tuple[Chain, ...]:
        return tuple(chain for chain in (self.outer, self.inner) if chain is not None)


@dataclass(frozen=True, slots=True)
class Member:
    """What the firewall knows of one container."""

    interface: str
    link_id: str
    lease: AddressLease
    egress: Egress
    ports: tuple[PortMapping, ...] = field(default=())


def interface_of(link_id: str) -> str:
    return f"w-{link_id}-0"


def _ports(ports: Sequence[PortRange]) -> Iterable[str]:
    """One rule a port: anonymous sets made each change a thousand times dearer."""
    for port in ports:
        yield f"{port.first}" if port.first == port.last else f"{port.first}-{port.last}"


def _matches(rule: EgressRule) -> Iterable[str]:
    if rule.protocol is Protocol.ALL:
        yield ""
    elif rule.protocol is Protocol.ICMP:
        words = ["meta l4proto icmp"]
        if rule.icmp_type is not None:
            words.append(f"icmp type {rule.icmp_type}")
            if rule.icmp_code is not None:
                words.append(f"icmp code {rule.icmp_code}")
        yield " ".join(words)
    elif rule.ports:
        yield from (f"{rule.protocol.value} dport {port}" for port in _ports(rule.ports))
    else:
        yield f"meta l4proto {rule.protocol.value}"


def make_egress(rules: Sequence[EgressRule], policy: Policy) -> Egress:
    """The two chains of a rule list, first match first.

    Those that log stand before all others: with Warden the rule that came last was tried first, and the log rules came last
    (dea-bus.md 2.7, Warden B.6); behind a plain rule that matches as well, they would log nothing.
    """
    closed = [parse_network(network) for network in policy.closed]
    outer: list[str] = []
    inner: list[str] = []
    for rule in sorted(rules, key=lambda rule: not rule.log):
        for network in rule.networks or ("0.0.0.0/0",):
            first, last = parse_network(network)
            within = any(low <= first and last <= high for low, high in closed)
            single = first == last
            everywhere = (first, last) == (ipaddress.IPv4Address(0), ipaddress.IPv4Address(0xFFFFFFFF))
            where = "" if everywhere else f"ip daddr {first}" if single else f"ip daddr {first}-{last}"
            for match in _matches(rule):
                logged = 'ct state new log prefix "garrison " ' if rule.log else ""
                text = " ".join(part for part in (where, match) if part)
                lines = [f"{text} {logged}".strip()] if logged else []
                lines.append(f"{text} accept".strip())
                if within or single:
                    inner += lines
                if not within:
                    outer += lines
    return Egress(Chain(tuple(outer)) if outer else None, Chain(tuple(inner)) if inner else None)


def _elements(values: Iterable[str]) -> str:
    listed = ", ".join(values)
    return f"elements = {{ {listed} }};" if listed else ""


def base(policy: Policy) -> str:
    """Both tables, made anew in one transaction: what stood there before is gone.

    Published ports have no listener that could be bound to an address: who reaches them is decided by where they are led
    inside. Other containers come by `w-*` and have their own rules; what the host itself sends comes by c_out.
    """
    comes_by = 'iifname "w-*"' if policy.publish_to_host_only else ""
    host = "fib daddr type local accept" if policy.allow_host_access else ""
    return f"""
add table inet {TABLE}
delete table inet {TABLE}
add table netdev {TABLE}
delete table netdev {TABLE}
table inet {TABLE} {{
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
    meta nfproto != ipv4 drop
    ct state established,related accept
    ct state invalid drop
    meta l4proto {{ tcp, udp }} th dport 53 ip daddr @s_dns accept
    fib daddr type != unicast goto c_inner
    ip daddr @s_closed goto c_inner
    ip daddr @s_nets accept
    iifname . ip saddr vmap @m_outer
    goto c_reject
  }}
  chain c_in {{ type filter hook prerouting priority -150; iifname "w-*" goto c_from; }}
  chain c_fwd {{
    type filter hook forward priority 0;
    oifname "w-*" ct state established,related accept
    oifname "w-*" iifname "w-*" accept
    oifname "w-*" ct status dnat accept
    oifname "w-*" drop
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
    oifname "w-*" ip saddr 127.0.0.0/8 masquerade
    oifname "w-*" iifname "w-*" ct status dnat masquerade
    oifname != "w-*" ip saddr {policy.pool_network} masquerade
  }}
}}
table netdev {TABLE} {{ }}
"""


def remove() -> str:
    """Both tables gone; fine when they are not there."""
    return "".join(
        f"add table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in ("inet", "netdev")
    )


def set_guarded(uplinks: Iterable[str]) -> str:
    """Interfaces by which only what is for containers is forwarded. Conversations and published ports of another router
    pass: one that begins while no manager runs is not stood in the way of."""
    text = f"flush set inet {TABLE} s_uplinks\n"
    names = ", ".join(f'"{name}"' for name in sorted(uplinks))
    return text + (f"add element inet {TABLE} s_uplinks {{ {names} }}\n" if names else "")


def add_chain(chain: Chain) -> str:
    lines = [f"add chain inet {TABLE} {chain.name}"]
    lines += [f"add rule inet {TABLE} {chain.name} {rule}" for rule in chain.rules]
    return "\n".join(lines) + "\n"


def delete_chain(chain: Chain) -> str:
    return f"delete chain inet {TABLE} {chain.name}\n"


def _verdicts(member: Member, egress: Egress) -> Iterable[tuple[str, str]]:
    key = f'"{member.interface}" . {member.lease.container_ip}'
    for name, chain in (("m_outer", egress.outer), ("m_inner", egress.inner)):
        if chain is not None:
            yield name, f"{key} : jump {chain.name}"


def add_egress(member: Member, egress: Egress) -> str:
    return "".join(
        f"add element inet {TABLE} {name} {{ {text} }}\n" for name, text in _verdicts(member, egress)
    )


def delete_egress(member: Member, egress: Egress) -> str:
    return "".join(
        f"delete element inet {TABLE} {name} {{ {text} }}\n" for name, text in _verdicts(member, egress)
    )


def _port(member: Member, mapping: PortMapping) -> tuple[str, str]:
    key = f"{mapping.protocol.value} . {mapping.host_port}"
    return key, f"{key} : {member.lease.container_ip} . {mapping.container_port}"


def add_port(member: Member, mapping: PortMapping) -> str:
    return f"add element inet {TABLE} m_port {{ {_port(member, mapping)[1]} }}\n"


def delete_port(member: Member, mapping: PortMapping) -> str:
    return f"delete element inet {TABLE} m_port {{ {_port(member, mapping)[0]} }}\n"


def add_ingress(member: Member) -> str:
    """Only what says this gate's address passes; the mark as "for this host" is what opens it at all."""
    chain = f"i_{member.link_id}"
    hook = f'type filter hook ingress device "{member.interface}" priority -500; policy drop;'
    return (
        f"add chain netdev {TABLE} {chain} {{ {hook} }}\n"
        f"add rule netdev {TABLE} {chain} ip saddr {member.lease.container_ip} meta pkttype set host accept\n"
    )


def delete_ingress(member: Member) -> str:
    chain = f"i_{member.link_id}"
    # Some kernels drop the chain with its device, others keep it: added first, it is there in either case.
    return "".join(f"{verb} chain netdev {TABLE} {chain}\n" for verb in ("add", "flush", "delete"))
