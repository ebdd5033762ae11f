"""The rule set as lines for iptables-restore: what makes one of another, and what is ours in a saved text."""

from __future__ import annotations

import pytest

from container.network.firewall.iptables.text import Chains, Rules, anew, change, ours, prefix_of, restore
from container.network.policy import LinkRules, Policy, Ruleset, interface_of, make_egress
from container.pools import AddressLease
from container.spec import EgressRule, PortMapping, PortRange, Protocol

pytestmark = pytest.mark.unit

POLICY = Policy("10.254.0.0/16", ("9.9.9.9",), ("192.0.2.0/24", "192.0.3.1-192.0.3.9"))
TEXT = Chains("garrison", POLICY)
EMPTY = Ruleset(POLICY)


def link(number: int, *rules: EgressRule, ports: tuple[PortMapping, ...] = ()) -> LinkRules:
    link_id = f"{number:011}"
    lease = AddressLease(f"10.254.{number}.0/30", f"10.254.{number}.1", f"10.254.{number}.2")
    return LinkRules(interface_of(link_id), link_id, lease, make_egress(rules, POLICY), ports)


def lines_of(*rules: EgressRule) -> list[str]:
    """The lines of the one list of permissions."""
    chains = TEXT.whole(EMPTY.add(link(1, *rules)))["mangle"].chains
    (found,) = [lines for name, lines in chains.items() if name.startswith("garrison-o-")]
    return found


@pytest.mark.parametrize(
    ("rule", "lines"),
    [
        (EgressRule(Protocol.ALL), ["-g garrison-ok"]),
        (EgressRule(Protocol.TCP), ["-p tcp -g garrison-ok"]),
        (EgressRule(Protocol.UDP, ("8.8.8.8/16",)), ["-d 8.8.0.0/16 -p udp -g garrison-ok"]),
        (
            EgressRule(Protocol.TCP, ("8.8.0.0/16",), (PortRange(80, 80), PortRange(1, 9))),
            [
                "-d 8.8.0.0/16 -p tcp -m tcp --dport 80 -g garrison-ok",
                "-d 8.8.0.0/16 -p tcp -m tcp --dport 1:9 -g garrison-ok",
            ],
        ),
        (
            EgressRule(Protocol.TCP, ("8.8.8.7-8.8.8.9",), (PortRange(80, 80),)),
            ["-p tcp -m iprange --dst-range 8.8.8.7-8.8.8.9 -m tcp --dport 80 -g garrison-ok"],
        ),
        (
            EgressRule(Protocol.ICMP, icmp_type=3, icmp_code=1),
            ["-p icmp -m icmp --icmp-type 3/1 -g garrison-ok"],
        ),
        (EgressRule(Protocol.ICMP, icmp_type=0), ["-p icmp -m icmp --icmp-type 0 -g garrison-ok"]),
        (
            EgressRule(Protocol.UDP, log=True),
            ['-p udp -m conntrack --ctstate NEW -j LOG --log-prefix "garrison "', "-p udp -g garrison-ok"],
        ),
    ],
)
def test_a_rule_as_lines(rule: EgressRule, lines: list[str]) -> None:
    assert lines_of(rule) == lines


def applied(before: Rules, lines: list[str]) -> Rules:
    """What the kernel makes of the lines."""
    chains = {name: list(rules) for name, rules in before.chains.items()}
    for line in lines:
        verb, _, rest = line.partition(" ")
        if verb.startswith(":"):
            chains[verb[1:]] = []
        elif verb == "-X":
            assert chains.pop(rest) == []
        elif verb == "-F":
            chains[rest] = []
        else:
            name, _, rule = rest.partition(" ")
            if verb == "-D":
                chains[name].remove(rule)
            elif verb == "-I":
                place, _, rule = rule.partition(" ")
                chains[name].insert(int(place) - 1, rule)
            else:
                chains[name].append(rule)
    return Rules(chains, before.jumps)


WEB = EgressRule(Protocol.TCP, (), (PortRange(80, 80),))
HOST = EgressRule(Protocol.TCP, ("198.51.100.7",))
ONE, TWO = link(1, WEB, ports=(PortMapping(Protocol.TCP, 7001, 80),)), link(2, WEB, HOST)
SETS = {
    "empty": EMPTY,
    "one": EMPTY.add(ONE),
    "two": EMPTY.add(ONE, TWO),
    "other order": EMPTY.add(TWO).add(link(3)).add(ONE),
    "other rules": EMPTY.add(link(1, HOST, WEB), TWO),
    "guarded": EMPTY.add(TWO).guard(frozenset({"eth0", "eth1"})),
    "more ports": EMPTY.add(ONE).publish(ONE.link_id, PortMapping(Protocol.UDP, 7002, 53)),
}


@pytest.mark.parametrize("after", SETS)
@pytest.mark.parametrize("before", SETS)
def test_a_change_makes_one_of_another(before: str, after: str) -> None:
    """In each table; the order of a list's rules counts, except where no two of them match one packet."""
    old, new = TEXT.whole(SETS[before]), TEXT.whole(SETS[after])
    for table, wanted in new.items():
        made = applied(old[table], change(old[table], wanted))
        assert made.chains.keys() == wanted.chains.keys()
        for name, rules in wanted.chains.items():
            assert sorted(made.chains[name]) == sorted(rules)
            assert made.chains[name][-1:] == rules[-1:], "what ends a list stays its end"
        assert change(wanted, wanted) == []


def test_a_change_of_a_port_touches_nat_alone() -> None:
    lines = {
        table: change(TEXT.whole(SETS["one"])[table], rules)
        for table, rules in TEXT.whole(SETS["more ports"]).items()
    }
    assert {table: len(found) for table, found in lines.items()} == {"mangle": 0, "filter": 0, "nat": 1}
    assert restore(lines) == (
        "*nat\n-I garrison-ports 2 -p udp -m udp --dport 7002 -j DNAT --to-destination 10.254.1.2:53\nCOMMIT\n"
    )


def test_everything_anew_replaces_what_was_there() -> None:
    """Jumps are put first, each once; chains that nobody needs any more go."""
    wanted = TEXT.whole(SETS["one"])["mangle"]
    found = Rules(
        {"garrison-from": ["-j ACCEPT"], "garrison-o-old": ["-j ACCEPT"]},
        [("PREROUTING", "-j garrison-from")],
    )
    lines = anew(wanted, found)
    assert "-D PREROUTING -j garrison-from" in lines
    assert lines[-1] == "-X garrison-o-old"
    jumps = [line for line in lines if line.startswith("-I ")]
    assert [line.split(" ", 3)[1::2] for line in jumps] == [
        [chain, rule] for chain, rule in reversed(wanted.jumps)
    ]
    assert anew(Rules(), Rules()) == []


def test_what_is_ours_in_a_saved_text() -> None:
    """Other chains and rules are others', also of a depot whose name begins like ours."""
    saved = """# Generated
*mangle
:PREROUTING ACCEPT [1:2]
:garrison-from - [0:0]
:garrison2-from - [0:0]
-A PREROUTING -s 10.254.0.0/16 -i w-+ -j garrison-from
-A PREROUTING -s 10.9.0.0/16 -i w-+ -j garrison2-from
-A PREROUTING -j ACCEPT
-A garrison-from -j MARK --set-xmark 0x40000000/0x70000000
-A garrison2-from -j DROP
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
COMMIT
"""
    found = ours(saved, "garrison")
    assert found["mangle"].chains == {"garrison-from": ["-j MARK --set-xmark 0x40000000/0x70000000"]}
    assert found["mangle"].jumps == [("PREROUTING", "-s 10.254.0.0/16 -i w-+ -j garrison-from")]
    assert found["nat"] == found["filter"] == Rules()


@pytest.mark.parametrize("table", ["garrison", "a" * 12, "a" * 24, "b" * 23])
def test_names_of_chains_fit(table: str) -> None:
    """28 characters are the kernel's limit; two long names are not shortened to one."""
    chains = Chains(prefix_of(table), POLICY).whole(SETS["two"])
    assert all(len(name) <= 28 for rules in chains.values() for name in rules.chains)
    assert prefix_of("a" * 24) != prefix_of("a" * 23)
