"""The rule set as a value: which class a permission falls into, and the difference of two rule sets."""

from __future__ import annotations

import pytest

from container.network.policy import (
    Egress,
    LinkRules,
    Policy,
    Ruleset,
    RulesetChange,
    changed,
    interface_of,
    make_egress,
)
from container.pools import AddressLease
from container.spec import EgressRule, PortMapping, PortRange, Protocol

pytestmark = pytest.mark.unit

POLICY = Policy("10.254.0.0/16", ("9.9.9.9",))


def rule(*networks: str, **changes: object) -> EgressRule:
    return EgressRule(**{"protocol": Protocol.TCP, "networks": networks, **changes})  # type: ignore[arg-type]


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

    found = {"outer": egress.outer, "inner": egress.inner}
    assert {name for name, permits in found.items() if permits} == classes


def test_no_rules_permit_nothing() -> None:
    """A back end then has nothing to look up, and the packet is refused."""
    assert make_egress([], POLICY) == Egress((), ())
    assert make_egress([], POLICY).lists == ()


def test_a_permission_is_one_network_and_one_port_range() -> None:
    """In the order of the rules; an ICMP code without a type says nothing."""
    ports = (PortRange(1, 1), PortRange(5, 9))
    found = make_egress(
        [rule("1.0.0.0/31", "2.0.0.0/31", ports=ports), rule(protocol=Protocol.ICMP, icmp_code=4)], POLICY
    )

    assert [(str(one.first), one.ports, one.icmp_code) for one in found.outer] == [
        ("1.0.0.0", ports[0], None),
        ("1.0.0.0", ports[1], None),
        ("2.0.0.0", ports[0], None),
        ("2.0.0.0", ports[1], None),
        ("0.0.0.0", None, None),
    ]


def link(number: int, *rules: EgressRule, ports: tuple[PortMapping, ...] = ()) -> LinkRules:
    link_id = f"{number:011}"
    lease = AddressLease(f"10.254.{number}.0/30", f"10.254.{number}.1", f"10.254.{number}.2")
    return LinkRules(interface_of(link_id), link_id, lease, make_egress(rules, POLICY), ports)


EMPTY = Ruleset(POLICY)
ONE, TWO = link(1, rule("8.8.0.0/16")), link(2, rule("8.8.0.0/16"), rule("8.8.8.8"))
PORT = PortMapping(Protocol.TCP, 80, 8080)


def test_a_change_leaves_the_rule_set_that_it_was_made_from() -> None:
    """A refused change is forgotten with its result."""
    held = EMPTY.add(ONE)
    held.add(TWO)
    held.publish(ONE.link_id, PORT)
    held.set_egress(ONE.link_id, Egress())
    held.guard(frozenset({"eth0"}))
    held.remove(ONE.link_id)

    assert held == EMPTY.add(ONE)
    assert changed(held, EMPTY.add(ONE)) == RulesetChange()


def test_the_difference_names_what_came_went_and_changed() -> None:
    """And the lists of permissions that nobody used before, or nobody uses any more."""
    before = EMPTY.add(ONE, TWO)
    three = link(3, rule("9.9.0.0/16"))
    after = before.remove(TWO.link_id).publish(ONE.link_id, PORT).add(three).guard(frozenset({"eth0"}))

    assert changed(before, after) == RulesetChange(
        removed=(TWO,),
        added=(three,),
        altered=((ONE, link(1, rule("8.8.0.0/16"), ports=(PORT,))),),
        lists_added=three.egress.lists,
        lists_removed=TWO.egress.lists,
        guarded=frozenset({"eth0"}),
    )


def test_a_list_of_permissions_stays_until_its_last_user_goes() -> None:
    """Back ends share what is equal."""
    twin = link(3, rule("8.8.0.0/16"))
    both = EMPTY.add(ONE, twin)

    assert changed(both, both.remove(ONE.link_id)).lists_removed == ()
    assert changed(both, both.remove(ONE.link_id).remove(twin.link_id)).lists_removed == ONE.egress.lists
    assert both.remove(ONE.link_id).remove(twin.link_id) == EMPTY


def test_a_link_with_another_address_is_another_link() -> None:
    """What was made for the old address is removed first."""
    moved = LinkRules(ONE.interface, ONE.link_id, TWO.lease, ONE.egress)

    assert changed(EMPTY.add(ONE), EMPTY.add(moved)) == RulesetChange(removed=(ONE,), added=(moved,))


def test_removing_what_is_not_there_is_no_change() -> None:
    """Destroy may be called twice."""
    assert EMPTY.remove("absent") is EMPTY
    assert changed(EMPTY, EMPTY) == RulesetChange()
