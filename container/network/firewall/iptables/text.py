"""The rule set as lines for iptables-restore(8), written from values. Pure; programs.py runs it.

A packet of a container is judged in mangle PREROUTING, before DNAT, where `-d` still is the address that the job dialled.
REJECT is not valid there, so the verdict is a mark of three bits, and filter only says no politely. What has no mark of ours is
stopped by the policies of xfrm.py. Each line is written as iptables-save prints it, so that what the kernel holds can be
compared. docs/network.md, "The rule set of iptables", explains each chain.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
)
from container.spec import PortMapping, Protocol

#: Verdicts of a packet of a container. Bits that few other programs use.
OK: Final = 0x20000000
DENY: Final = 0x40000000
_INNER: Final = 0x10000000
_ALL: Final = OK | DENY | _INNER
_LINKS: Final = f"{INTERFACE_PREFIX}+"
_PREFIX_MOST: Final = 12
_ESTABLISHED: Final = "-m conntrack --ctstate RELATED,ESTABLISHED"
_MANGLE, _FILTER, _NAT = "mangle", "filter", "nat"
#: To open, mangle comes last.
TABLES: Final = (_NAT, _FILTER, _MANGLE)


@dataclass(slots=True)
class Rules:
    """What is ours in one table: our chains with their rules, and the rules that we have in the kernel's chains.

    ``chains``: by name, each rule without ``-A NAME``. ``jumps``: (chain of the kernel, rule), each in the first place.
    """

    chains: dict[str, list[str]] = field(default_factory=dict)
    jumps: list[tuple[str, str]] = field(default_factory=list)


def prefix_of(table: str) -> str:
    """What the names of a depot's chains begin with. Names of chains have 28 characters at most."""
    if len(table) <= _PREFIX_MOST:
        return table
    return table[:7] + hashlib.sha256(table.encode()).hexdigest()[:5]


def _mark(value: int, mask: int) -> str:
    return f"-m mark --mark {value:#x}/{mask:#x}"


def _set_mark(value: int) -> str:
    return f"-j MARK --set-xmark {value:#x}/{_ALL:#x}"


def _to(network: str) -> str:
    """A network of the settings, as a match of destinations."""
    if "-" in network:
        return f"-m iprange --dst-range {network.replace(' ', '')}"
    found = ipaddress.IPv4Network(network.strip(), strict=False)
    return "" if found.prefixlen == 0 else f"-d {found}"


def _rule(*parts: str) -> str:
    return " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class _Written:
    """``egress`` is held, so that its identity is not given to another. ``name``: of the first of its chains."""

    egress: Egress
    name: str
    chains: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Chains:
    """Texts for the chains of one depot. Other depots have chains beside them, so rules match the depot's own pool too.

    ``_known``: what permissions were written as in the last ruleset, by their identity, since a change leaves nearly all as they
    were. To write them anew took 20 ms of a change at 500 containers.
    """

    prefix: str
    policy: Policy
    _known: dict[int, _Written] = field(default_factory=dict, compare=False, repr=False)

    def name(self, of: str) -> str:
        return f"{self.prefix}-{of}"

    def whole(self, ruleset: Ruleset) -> dict[str, Rules]:
        """Everything, by table."""
        return {_MANGLE: self._mangle(ruleset), _FILTER: self._filter(ruleset), _NAT: self._nat(ruleset)}

    def _mangle(self, ruleset: Ruleset) -> Rules:
        policy, name, pool = self.policy, self.name, self.policy.pool_network
        ok = f"-g {name('ok')}"
        common = [
            f"-d {server}/32 -p {kind} -m {kind} --dport 53 {ok}"
            for server in policy.dns_servers
            for kind in ("udp", "tcp")
        ]
        common.append(f"-m addrtype ! --dst-type UNICAST {_set_only(_INNER)}")
        common += [f"-d {network} {_set_only(_INNER)}" for network in policy.closed]
        if policy.allow_host_access:
            common.append(f"-m addrtype --dst-type LOCAL {ok}")
        common += [_rule(_to(network), ok) for network in policy.allow_networks]
        chains = {
            name("from"): [
                _set_mark(DENY),
                f"{_ESTABLISHED} {ok}",
                "-m conntrack --ctstate INVALID -j DROP",
                "-d 127.0.0.0/8 -j DROP",
                "-m addrtype --dst-type BROADCAST -j DROP",
                "-m addrtype --dst-type MULTICAST -j DROP",
                f"-g {name('by')}",
            ],
            name("any"): ["-m addrtype --dst-type BROADCAST -j DROP", "-s 0.0.0.0/8 -j DROP"],
            name("common"): common,
            name("ok"): [_set_mark(OK)],
            name("to"): [
                f"{_ESTABLISHED} -j RETURN",
                f"-s {pool} -i {_LINKS} -j RETURN",
                "-m conntrack --ctstate DNAT -j RETURN",
                "-j DROP",
            ],
            name("last"): [f"-s {pool} {_mark(DENY, DENY)} -j DROP"],  # filter is gone: still denied
        }
        by, used = list[str](), dict[int, _Written]()
        for link in ruleset.links.values():
            key = id(link.egress)
            written = used.get(key) or self._known.get(key) or self._write(link.egress)
            if key not in used:
                used[key] = written
                chains |= written.chains
            by.append(f"-s {link.lease.container_ip}/32 -i {link.interface} -g {written.name}")
        chains[name("by")] = [*by, "-j DROP"]
        self._known.clear()
        self._known.update(used)
        return Rules(
            chains,
            [
                ("PREROUTING", f"-s {pool} -i {_LINKS} -j {name('from')}"),
                ("PREROUTING", f"-i {_LINKS} -j {name('any')}"),
                ("FORWARD", f"-d {pool} -o {_LINKS} -j {name('to')}"),
                ("POSTROUTING", f"-j {name('last')}"),
            ],
        )

    def _write(self, egress: Egress) -> _Written:
        """The chain of a container's permissions, and those of its lists. Equal ones have one name."""
        rules = [f"-j {self.name('common')}", f"{_mark(OK, OK)} -j RETURN"]
        lists = {}
        for permits, bit in ((egress.inner, _INNER), (egress.outer, 0)):
            if permits:
                chain = self.name(_of_permits(permits))
                rules.append(f"{_mark(bit, _INNER)} -g {chain}")
                lists[chain] = [line for permit in permits for line in self._permit(permit)]
        name = self.name(_of_egress(egress))
        return _Written(egress, name, {name: rules, **lists})

    def _permit(self, permit: Permit) -> Iterator[str]:
        match = _match(permit)
        if permit.log:
            yield _rule(match, f'-m conntrack --ctstate NEW -j LOG --log-prefix "{LOG_PREFIX}"')
        yield _rule(match, f"-g {self.name('ok')}")

    def _filter(self, ruleset: Ruleset) -> Rules:
        name, pool = self.name, self.policy.pool_network
        guard = []
        for uplink in sorted(ruleset.guarded):
            guard += [
                f"-i {uplink} {_ESTABLISHED} -j RETURN",
                f"-i {uplink} -m conntrack --ctstate DNAT -j RETURN",
                f"-i {uplink} -j DROP",
            ]
        chains = {
            name("reject"): [
                "-p tcp -j REJECT --reject-with tcp-reset",
                "-j REJECT --reject-with icmp-port-unreachable",
            ],
            name("in"): [f"{_mark(DENY, DENY)} -g {name('reject')}"],
            name("guard"): guard,
            name("fwd"): [
                f"-s {pool} -i {_LINKS} {_mark(DENY, DENY)} -g {name('reject')}",
                f"-s {pool} -i {_LINKS} -j ACCEPT",
                f"-j {name('guard')}",
                f"-d {pool} -o {_LINKS} -j ACCEPT",
            ],
        }
        return Rules(
            chains,
            [
                ("INPUT", f"-s {pool} -i {_LINKS} -j {name('in')}"),
                ("FORWARD", f"-j {name('fwd')}"),
            ],
        )

    def _nat(self, ruleset: Ruleset) -> Rules:
        name, pool = self.name, self.policy.pool_network
        comes_by = f"-i {_LINKS} " if self.policy.publish_to_host_only else ""
        own = "-m conntrack --ctstate DNAT -j MASQUERADE"
        chains = {
            name("ports"): [
                self._port(link, mapping) for link in ruleset.links.values() for mapping in link.ports
            ],
            name("post"): [
                f"-s 127.0.0.0/8 -d {pool} -o {_LINKS} -j MASQUERADE",
                f"-d {pool} -o {_LINKS} {_mark(OK, OK)} {own}",
                f"-s {pool} ! -o {_LINKS} -j MASQUERADE",
            ],
        }
        return Rules(
            chains,
            [
                ("PREROUTING", f"{comes_by}-m addrtype --dst-type LOCAL -j {name('ports')}"),
                ("OUTPUT", f"-m addrtype --dst-type LOCAL -j {name('ports')}"),
                ("POSTROUTING", f"-j {name('post')}"),
            ],
        )

    @staticmethod
    def _port(link: LinkRules, mapping: PortMapping) -> str:
        kind = mapping.protocol.value
        to = f"{link.lease.container_ip}:{mapping.container_port}"
        return f"-p {kind} -m {kind} --dport {mapping.host_port} -j DNAT --to-destination {to}"


def _set_only(bit: int) -> str:
    return f"-j MARK --set-xmark {bit:#x}/{bit:#x}"


def _of_permits(permits: Permits) -> str:
    return "o-" + hashlib.sha256(repr(permits).encode()).hexdigest()[:12]


def _of_egress(egress: Egress) -> str:
    return "e-" + hashlib.sha256(repr(egress).encode()).hexdigest()[:12]


def _match(permit: Permit) -> str:
    """Address, protocol, then modules, as iptables-save orders them."""
    networks = list(ipaddress.summarize_address_range(permit.first, permit.last))
    address, module = "", ""
    if len(networks) > 1:
        module = f"-m iprange --dst-range {permit.first}-{permit.last}"
    elif not permit.is_everywhere:
        address = f"-d {networks[0]}"
    protocol = "" if permit.protocol is Protocol.ALL else f"-p {permit.protocol.value}"
    return _rule(address, protocol, module, _details(permit))


def _details(permit: Permit) -> str:
    """What of its protocol a permission names."""
    kind, ports = permit.protocol.value, permit.ports
    if ports is not None:
        one = ports.first == ports.last
        return f"-m {kind} --dport {ports.first if one else f'{ports.first}:{ports.last}'}"
    if permit.icmp_type is None:
        return ""
    code = "" if permit.icmp_code is None else f"/{permit.icmp_code}"
    return f"-m icmp --icmp-type {permit.icmp_type}{code}"


def change(before: Rules, after: Rules) -> list[str]:
    """The lines that make ``after`` of ``before`` in one table. The jumps of both are the same.

    New chains come before the rules that lead to them, and old ones go after them. A new rule of a list goes to its place from
    behind, so that what ends the list stays its end.
    """
    lines = [f":{name} - [0:0]" for name in after.chains if name not in before.chains]
    for name, rules in after.chains.items():
        old = before.chains.get(name, [])
        lines += _changed_rules(name, old, rules)
    gone = [name for name in before.chains if name not in after.chains]
    lines += [f"-F {name}" for name in gone]
    return lines + [f"-X {name}" for name in gone]


def _changed_rules(name: str, old: list[str], new: list[str]) -> Iterator[str]:
    if old == new:
        return
    kept, wanted = set(new), set(old)
    yield from (f"-D {name} {rule}" for rule in old if rule not in kept)
    for place, rule in enumerate(new, 1):
        if rule not in wanted:
            yield f"-I {name} {place} {rule}"


def anew(wanted: Rules, found: Rules) -> list[str]:
    """The lines that make ``wanted``, whatever there is of ours: ``found``."""
    names = dict.fromkeys((*wanted.chains, *found.chains))
    lines = [f":{name} - [0:0]" for name in names]  # also empties what is there
    lines += [f"-D {chain} {rule}" for chain, rule in found.jumps]
    for name, rules in wanted.chains.items():
        lines += [f"-A {name} {rule}" for rule in rules]
    lines += [f"-I {chain} 1 {rule}" for chain, rule in reversed(wanted.jumps)]
    return lines + [f"-X {name}" for name in names if name not in wanted.chains]


def restore(tables: Mapping[str, list[str]]) -> str:
    """The input of iptables-restore. Tables without lines are left out."""
    return "".join(
        f"*{table}\n" + "\n".join(lines) + "\nCOMMIT\n" for table, lines in tables.items() if lines
    )


def ours(saved: str, prefix: str) -> dict[str, Rules]:
    """What is the depot's in the output of iptables-save, by table."""
    found: dict[str, Rules] = {table: Rules() for table in TABLES}
    rules = Rules()
    begins = f"{prefix}-"
    for line in saved.splitlines():
        if line.startswith("*"):
            rules = found.setdefault(line[1:].strip(), Rules())
        elif line.startswith(f":{begins}"):
            rules.chains[line[1:].split(" ")[0]] = []
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            if chain.startswith(begins):
                rules.chains.setdefault(chain, []).append(rule)
            elif rule.rpartition(" ")[2].startswith(begins):
                rules.jumps.append((chain, rule))
    return found


def pools_of(found: Mapping[str, Rules]) -> set[str]:
    """The pools that our rules name, which a former manager may have had."""
    jumps = found[_MANGLE].jumps if _MANGLE in found else []
    return {rule.split(" ")[1] for _, rule in jumps if rule.startswith("-s ")}
