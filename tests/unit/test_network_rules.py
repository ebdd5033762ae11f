"""Rules as text, and which of the two classes a rule falls into."""

from __future__ import annotations

import pytest

from container.network.netlink import attribute, attributes, message, messages
from container.network.rules import Chain, Egress, Member, Policy, base, interface_of, make_egress
from container.network.ruleset import Ruleset
from container.pools import AddressLease
from container.spec import EgressRule, PortMapping, PortRange, Protocol

pytestmark = pytest.mark.unit

POLICY = Policy("10.254.0.0/16", ("9.9.9.9",))


def rule(*networks: str, **changes: object) -> EgressRule:
    return EgressRule(**{"protocol": Protocol.TCP, "networks": networks, **changes})  # type: ignore[arg-type]


def lines(chain: Chain | None) -> list[str]:
    return list(chain.rules) if chain is not None else []


@pytest.mark.parametrize(
    ("network", "classes"),
    [
        ("0.0.0.0/0", {"outer"}),
        ("0.0.0.0-255.255.255.255", {"outer"}),
        ("198.51.100.0/24", {"outer"}),
        ("10.0.0.0/8", {"outer"}),  # covers the pool, and is not inside it
        ("10.253.255.255-10.254.0.1", {"outer"}),  # begins before it
        ("10.254.255.0-10.255.0.0", {"outer"}),  # ends after it
        ("169.254.0.0-169.255.0.0", {"outer"}),
        ("198.51.100.7", {"outer", "inner"}),  # may be an address of the host
        ("198.51.100.7/32", {"outer", "inner"}),
        ("198.51.100.7-198.51.100.7", {"outer", "inner"}),
        ("198.51.100.6/31", {"outer"}),
        ("0.0.0.0", {"inner"}),
        ("10.254.0.0/16", {"inner"}),
        ("10.254.7.7", {"inner"}),
        ("10.254.255.255", {"inner"}),
        ("10.254.0.1-10.254.0.9", {"inner"}),
        ("169.254.169.254", {"inner"}),
        ("127.0.0.0/8", {"inner"}),
    ],
)
def test_a_rule_opens_a_closed_range_only_from_inside(network: str, classes: set[str]) -> None:
    """Everything else goes to the outer chain, a single address of the world to both."""
    egress = make_egress([rule(network)], POLICY)

    found = {"outer": lines(egress.outer), "inner": lines(egress.inner)}
    assert {name for name, chain in found.items() if chain} == classes


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
    """One line a network and port: sets without a name would cost a thousand times as much (network.md 1)."""
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


def test_no_rules_are_no_chains() -> None:
    """The maps then have no entry, and the packet is refused."""
    assert make_egress([], POLICY) == Egress(None, None)


def test_the_base_says_what_the_policy_says() -> None:
    """Host access is one line; empty sets are declared without elements."""
    closed = base(Policy("10.0.0.0/24"))
    opened = base(Policy("10.0.0.0/24", ("1.1.1.1", "8.8.8.8"), ("192.0.2.0/24",), allow_host_access=True))

    assert "fib daddr type local accept" not in closed
    assert "set s_dns { type ipv4_addr;  }" in closed
    assert "elements = { 10.0.0.0/24, 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16 }" in closed
    assert "fib daddr type local accept" in opened
    assert "set s_dns { type ipv4_addr; elements = { 1.1.1.1, 8.8.8.8 }; }" in opened
    assert "elements = { 192.0.2.0/24 }" in opened


# The rule set as a value.


def member(number: int, *rules: EgressRule, ports: tuple[PortMapping, ...] = ()) -> Member:
    link_id = f"{number:011}"
    lease = AddressLease(f"10.254.{number}.0/30", f"10.254.{number}.1", f"10.254.{number}.2")
    return Member(interface_of(link_id), link_id, lease, make_egress(rules, POLICY), ports)


def changed(text: str) -> list[str]:
    """Verb, object and its first word; without the table."""
    short = []
    for line in text.splitlines():
        verb, what, _, _, name, *rest = line.replace("{ ", "").split(" ")
        short.append(" ".join([verb, what, name, *rest[:1]]))
    return short


def test_a_shared_chain_comes_with_its_first_user_and_goes_with_its_last() -> None:
    """A thousand containers have few."""
    held = Ruleset(POLICY)
    one, two = member(1, rule("8.8.0.0/16")), member(2, rule("8.8.0.0/16"))
    chain = one.egress.chains[0].name

    assert f"add chain {chain}" in changed(held.add(one))
    assert f"add chain {chain}" not in changed(held.add(two))
    assert f"delete chain {chain}" not in changed(held.remove(one.link_id))
    assert f"delete chain {chain}" in changed(held.remove(two.link_id))
    assert held.whole([]) == base(POLICY)


def test_a_chain_of_single_addresses_serves_both_classes() -> None:
    """Made once, removed once."""
    held = Ruleset(POLICY)
    one = member(1, rule("8.8.8.8"))
    assert one.egress.outer == one.egress.inner
    chain = one.egress.chains[0].name

    assert changed(held.add(one)).count(f"add chain {chain}") == 1
    assert changed(held.remove(one.link_id)).count(f"delete chain {chain}") == 1


def test_new_rules_replace_the_old_ones_in_one_text() -> None:
    """Elements are swapped, and a chain that stays is not touched."""
    held = Ruleset(POLICY)
    one = member(1, rule("8.8.0.0/16"))
    held.add(one)
    old, new = one.egress, make_egress([rule("8.8.0.0/16"), rule("9.9.0.0/16")], POLICY)
    assert old.outer is not None
    assert new.outer is not None

    assert changed(held.set_egress(one.link_id, new)) == [
        f"add chain {new.outer.name}",
        f"add rule {new.outer.name} ip",
        f"add rule {new.outer.name} ip",
        f'delete element m_outer "{one.interface}"',
        f'add element m_outer "{one.interface}"',
        f"delete chain {old.outer.name}",
    ]
    assert "chain" not in " ".join(changed(held.set_egress(one.link_id, new)))


def test_a_change_of_a_copy_leaves_the_original() -> None:
    """A refused change is forgotten with the copy."""
    held = Ruleset(POLICY)
    held.add(member(1, rule("8.8.0.0/16")))
    before = held.whole([])
    twin = held.copy()
    twin.add(member(2, rule("8.8.0.0/16")))
    twin.publish(f"{1:011}", PortMapping(Protocol.TCP, 80, 8080))
    twin.remove(f"{1:011}")

    assert held.whole([]) == before


def test_a_container_whose_interface_is_gone_has_no_gate() -> None:
    """Its other parts stay until it is destroyed, so that what removes them finds them."""
    held = Ruleset(POLICY)
    one = member(1, rule("8.8.0.0/16"), ports=(PortMapping(Protocol.UDP, 53, 5353),))
    held.add(one)

    gone, there = held.whole([]), held.whole([one.interface])

    assert f'device "{one.interface}"' not in gone
    assert f'device "{one.interface}"' in there
    assert "udp . 53 : 10.254.1.2 . 5353" in gone
    assert held.interfaces == [one.interface]
    assert len(held) == 1


def test_removing_what_is_not_there_is_no_change() -> None:
    """Destroy may be called twice."""
    assert Ruleset(POLICY).remove("absent") == ""


# Netlink.


def test_attributes_are_padded_and_read_back() -> None:
    """To four bytes, the padding not counted."""
    data = attribute(1, b"abcde") + attribute(0x8000 | 2, attribute(3, b"\1"))

    assert len(data) == 12 + 12
    assert attributes(data) == {1: b"abcde", 2: attribute(3, b"\1")}


@pytest.mark.parametrize("data", [b"\3\0\1\0", b"\x20\0\1\0ab", b"\0" * 7, b"", b"\4"])
def test_broken_attributes_end_the_reading(data: bytes) -> None:
    """Too short, too long, cut off: no loop without end, no error."""
    assert attributes(data) in ({}, {0: b""})


@pytest.mark.parametrize("cut", [1, 4, 15, 17])
def test_a_broken_message_ends_the_datagram(cut: int) -> None:
    """Those before it count."""
    whole = message(7, 1, b"body")

    assert list(messages(whole + whole[:-cut])) == [(7, b"body")]
    assert list(messages(whole + bytes(16))) == [(7, b"body")]
