"""The rule set as text for nft(8): permissions, the base, and what makes one rule set of another."""

from __future__ import annotations

import pytest

from container.network.firewall.nftables.text import Tables, chain_of
from container.network.policy import (
    LinkRules,
    Permits,
    Policy,
    Ruleset,
    changed,
    interface_of,
    make_egress,
)
from container.pools import AddressLease
from container.spec import EgressRule, PortMapping, PortRange, Protocol

pytestmark = pytest.mark.unit

POLICY = Policy("10.254.0.0/16", ("9.9.9.9",))
TEXT = Tables("garrison")


def rule(*networks: str, **changes: object) -> EgressRule:
    return EgressRule(**{"protocol": Protocol.TCP, "networks": networks, **changes})  # type: ignore[arg-type]


def lines(permits: Permits) -> list[str]:
    return list(chain_of(permits).rules)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (rule(), ["meta l4proto tcp accept"]),
        (rule("0.0.0.0/0", protocol=Protocol.ALL), ["accept"]),
        (rule("8.8.0.0/16", protocol=Protocol.UDP), ["ip daddr 8.8.0.0-8.8.255.255 meta l4proto udp accept"]),
        (rule("8.8.8.8/16", protocol=Protocol.ALL), ["ip daddr 8.8.0.0-8.8.255.255 accept"]),  # host bits
        (rule(" 8.8.8.8 - 8.8.8.9 "), ["ip daddr 8.8.8.8-8.8.8.9 meta l4proto tcp accept"]),
        (
            rule(ports=(PortRange(80, 80), PortRange(8000, 8100), PortRange(65535, 65535))),
            ["tcp dport 80 accept", "tcp dport 8000-8100 accept", "tcp dport 65535 accept"],
        ),
        (rule(protocol=Protocol.ICMP), ["meta l4proto icmp accept"]),
        (rule(protocol=Protocol.ICMP, icmp_type=0), ["meta l4proto icmp icmp type 0 accept"]),
        (
            rule(protocol=Protocol.ICMP, icmp_type=3, icmp_code=4),
            ["meta l4proto icmp icmp type 3 icmp code 4 accept"],
        ),
        (rule(protocol=Protocol.ICMP, icmp_code=4), ["meta l4proto icmp accept"]),  # a code needs a type
        (
            rule("1.0.0.0/31", "2.0.0.0/31", ports=(PortRange(1, 1), PortRange(2, 2))),
            [f"ip daddr {n}.0.0.0-{n}.0.0.1 tcp dport {p} accept" for n in (1, 2) for p in (1, 2)],
        ),
        (
            rule(log=True),
            ['meta l4proto tcp ct state new log prefix "garrison "', "meta l4proto tcp accept"],
        ),
    ],
)
def test_a_rule_as_text(asked: EgressRule, text: list[str]) -> None:
    """One line a network and port: sets without a name would cost a thousand times as much (docs/network.md,
    "The rule set of nftables")."""
    assert lines(make_egress([asked], POLICY).outer) == text


def test_a_rule_that_logs_stands_before_those_that_do_not() -> None:
    """Else a plain one that also matches would hide it; order is otherwise kept."""
    asked = [
        rule(protocol=Protocol.ALL),
        rule("8.8.8.0/24"),
        rule(log=True),
        rule("9.9.9.0/24"),
    ]

    assert lines(make_egress(asked, POLICY).outer) == [
        'meta l4proto tcp ct state new log prefix "garrison "',
        "meta l4proto tcp accept",
        "accept",
        "ip daddr 8.8.8.0-8.8.8.255 meta l4proto tcp accept",
        "ip daddr 9.9.9.0-9.9.9.255 meta l4proto tcp accept",
    ]


def test_the_base_says_what_the_policy_says() -> None:
    """Host access is one line; empty sets are declared without elements."""
    closed = TEXT.base(Policy("10.0.0.0/24"))
    opened = TEXT.base(
        Policy("10.0.0.0/24", ("1.1.1.1", "8.8.8.8"), ("192.0.2.0/24",), allow_host_access=True)
    )

    assert "fib daddr type local accept" not in closed
    assert "set s_dns { type ipv4_addr;  }" in closed
    assert "elements = { 10.0.0.0/24, 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16 }" in closed
    assert "fib daddr type local accept" in opened
    assert "set s_dns { type ipv4_addr; elements = { 1.1.1.1, 8.8.8.8 }; }" in opened
    assert "elements = { 192.0.2.0/24 }" in opened


# Changes.


def link(number: int, *rules: EgressRule, ports: tuple[PortMapping, ...] = ()) -> LinkRules:
    link_id = f"{number:011}"
    lease = AddressLease(f"10.254.{number}.0/30", f"10.254.{number}.1", f"10.254.{number}.2")
    return LinkRules(interface_of(link_id), link_id, lease, make_egress(rules, POLICY), ports)


def commands(before: Ruleset, after: Ruleset) -> list[str]:
    """Verb, object and its first word; without the table."""
    short = []
    for line in TEXT.change(changed(before, after)).splitlines():
        verb, what, _, _, name, *rest = line.replace("{ ", "").split(" ")
        short.append(" ".join([verb, what, name, *rest[:1]]))
    return short


def chains(one: LinkRules) -> list[str]:
    return [chain_of(permits).name for permits in one.egress.lists]


EMPTY = Ruleset(POLICY)


def test_a_shared_chain_comes_with_its_first_user_and_goes_with_its_last() -> None:
    """A thousand containers have few."""
    one, two = link(1, rule("8.8.0.0/16")), link(2, rule("8.8.0.0/16"))
    (chain,) = chains(one)
    first, both = EMPTY.add(one), EMPTY.add(one, two)
    last = both.remove(one.link_id)

    assert f"add chain {chain}" in commands(EMPTY, first)
    assert f"add chain {chain}" not in commands(first, both)
    assert f"delete chain {chain}" not in commands(both, last)
    assert f"delete chain {chain}" in commands(last, last.remove(two.link_id))
    assert TEXT.whole(last.remove(two.link_id), []) == TEXT.base(POLICY)


def test_a_chain_of_single_addresses_serves_both_classes() -> None:
    """Made once, removed once."""
    one = link(1, rule("8.8.8.8"))
    assert one.egress.outer == one.egress.inner
    (chain,) = chains(one)
    held = EMPTY.add(one)

    assert commands(EMPTY, held).count(f"add chain {chain}") == 1
    assert commands(held, EMPTY).count(f"delete chain {chain}") == 1


def test_new_rules_replace_the_old_ones_in_one_text() -> None:
    """A chain comes before the element that leads to it and goes after it; what stays is not touched."""
    one = link(1, rule("8.8.0.0/16"))
    held = EMPTY.add(one)
    new = make_egress([rule("8.8.0.0/16"), rule("9.9.0.0/16")], POLICY)
    replaced = held.set_egress(one.link_id, new)
    name = chain_of(new.outer).name

    assert commands(held, replaced) == [
        f"add chain {name}",
        f"add rule {name} ip",
        f"add rule {name} ip",
        f'delete element m_outer "{one.interface}"',
        f'add element m_outer "{one.interface}"',
        f"delete chain {chain_of(one.egress.outer).name}",
    ]
    assert commands(replaced, replaced.set_egress(one.link_id, new)) == []


def test_a_port_that_moves_to_another_link_is_freed_before_it_is_led_there() -> None:
    """The element's key is the port: in the other order the kernel refuses the transaction."""
    mapping = PortMapping(Protocol.TCP, 7000, 80)
    held = EMPTY.add(link(1, ports=(mapping,)), link(2))
    moved = held.remove(f"{1:011}").publish(f"{2:011}", mapping)

    assert [line for line in commands(held, moved) if "m_port" in line] == [
        "delete element m_port tcp",
        "add element m_port tcp",
    ]


def test_guarded_uplinks_are_one_set() -> None:
    """Sorted, so that the same set is the same text; none empties it."""
    held = EMPTY.guard(frozenset({"eth1", "eth0"}))

    assert 'elements = { "eth0", "eth1" }' not in TEXT.whole(held, [])
    assert 's_uplinks { "eth0", "eth1" }' in TEXT.whole(held, [])
    assert commands(EMPTY, held) == ["flush set s_uplinks", 'add element s_uplinks "eth0",']
    assert commands(held, EMPTY) == ["flush set s_uplinks"]


def test_a_container_whose_interface_is_gone_has_no_gate() -> None:
    """Its other parts stay until it is destroyed, so that what removes them finds them."""
    one = link(1, rule("8.8.0.0/16"), ports=(PortMapping(Protocol.UDP, 53, 5353),))
    held = EMPTY.add(one)

    gone, there = TEXT.whole(held, []), TEXT.whole(held, [one.interface])

    assert f'device "{one.interface}"' not in gone
    assert f'device "{one.interface}"' in there
    assert "udp . 53 : 10.254.1.2 . 5353" in gone


def test_a_shaped_container_s_gate_leads_to_its_ifb() -> None:
    """Replaced in one transaction, both ways; without the ifb there is no gate, and so no way out."""
    one = link(1)
    held = EMPTY.add(one)
    shaped = held.shape(one.link_id, True)
    device = f"w-{one.link_id}-2"

    for before, after, verdict in ((held, shaped, f'fwd to "{device}"'), (shaped, held, "accept")):
        _, flush, rule = TEXT.change(changed(before, after)).splitlines()
        assert flush == f"flush chain netdev garrison i_{one.link_id}"
        assert rule.endswith(f"ip saddr 10.254.1.2 meta pkttype set host {verdict}")
    assert shaped.shape(one.link_id, True) is shaped
    assert shaped.interfaces == [one.interface, device]
    assert "fwd to" in TEXT.whole(shaped, [one.interface, device])
    assert "add chain netdev" not in TEXT.whole(shaped, [one.interface])
    assert "add chain netdev" not in TEXT.whole(shaped, [device])
    assert TEXT.change(changed(shaped, EMPTY)) == TEXT.change(changed(held, EMPTY))
