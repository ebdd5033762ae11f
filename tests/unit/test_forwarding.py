"""Which interfaces are switched to forwarding, and which are given back."""

from __future__ import annotations

import socket
import struct

import pytest

from container.network.forwarding import Decision, Route, decide, leads_out, parse_route
from container.network.netlink import attribute

pytestmark = pytest.mark.unit
UNICAST, LOCAL, BLACKHOLE = 1, 2, 6
KERNEL, BOOT, DHCP = 2, 3, 16

#: ip_forward, uplinks, what we have opened, what is on; and opened then, switched on, switched off.
CASES: dict[str, tuple[bool, set[str], set[str], dict[str, bool], tuple[set[str], set[str], set[str]]]] = {
    "a fresh host": (False, {"a"}, set(), {"a": False}, ({"a"}, {"a"}, set())),
    "an operator's": (False, {"a"}, set(), {"a": True}, (set(), set(), set())),
    "ours, as left": (False, {"a"}, {"a"}, {"a": True}, ({"a"}, set(), set())),
    "ours, closed by others": (False, {"a"}, {"a"}, {"a": False}, ({"a"}, {"a"}, set())),
    "no uplink any more": (False, {"b"}, {"a"}, {"a": True, "b": False}, ({"b"}, {"b"}, {"a"})),
    "no uplink and closed": (False, set(), {"a"}, {"a": False}, (set(), set(), set())),
    "gone": (False, {"a"}, {"a"}, {}, (set(), set(), set())),
    "another router": (True, {"a"}, {"a"}, {"a": True}, (set(), set(), set())),
    "another router from the start": (True, {"a"}, set(), {"a": True}, (set(), set(), set())),
    "none": (False, set(), set(), {}, (set(), set(), set())),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_opened_and_what_is_given_back(case: str) -> None:
    """What was on before, or is switched on by another router, is never ours."""
    is_router, uplinks, opened, is_on, expected = CASES[case]
    found = decide(is_router=is_router, uplinks=uplinks, opened=opened, is_on=is_on)
    assert found == Decision(*map(frozenset, expected))


def payload(kind: int, protocol: int, *attributes: bytes) -> bytes:
    return struct.pack("=8BI", socket.AF_INET, 24, 0, 0, 254, protocol, 0, kind, 0) + b"".join(attributes)


def nexthop(index: int, *attributes: bytes) -> bytes:
    inner = b"".join(attributes)
    return struct.pack("=HBBi", 8 + len(inner), 0, 0, index) + inner


def test_a_route_is_read_with_all_its_interfaces() -> None:
    """One, or several at once; the gateway of each does not matter."""
    to, via = attribute(1, socket.inet_aton("10.1.0.0")), attribute(5, socket.inet_aton("10.0.0.1"))
    assert parse_route(payload(UNICAST, DHCP, to, via, attribute(4, struct.pack("=i", 3)))) == Route(
        UNICAST, DHCP, "10.1.0.0", (3,)
    )
    several = attribute(9, nexthop(3, via) + nexthop(5))
    assert parse_route(payload(UNICAST, BOOT, several)) == Route(UNICAST, BOOT, None, (3, 5))


@pytest.mark.parametrize("broken", [b"", b"\0" * 11, payload(1, 3, attribute(9, b"\x02\0\0\0\0\0\0\0"))])
def test_a_broken_message_leads_nowhere(broken: bytes) -> None:
    """No exception on the way of the loop."""
    route = parse_route(broken)
    assert route is None or route.indexes == ()


@pytest.mark.parametrize(
    ("route", "reached_at", "expected"),
    [
        (Route(UNICAST, DHCP, None, (2,)), None, True),
        (Route(UNICAST, BOOT, "10.1.0.0", (2,)), None, True),
        (Route(UNICAST, KERNEL, "10.1.0.0", (2,)), None, False),
        (Route(BLACKHOLE, BOOT, "10.1.0.0", ()), None, False),
        (Route(LOCAL, KERNEL, "10.0.16.21", (2,)), "10.0.16.21", True),
        (Route(LOCAL, KERNEL, "10.0.16.22", (2,)), "10.0.16.21", False),
        (Route(LOCAL, KERNEL, "10.0.16.21", (2,)), None, False),
    ],
)
def test_a_route_that_somebody_has_set_leads_to_peers(
    route: Route, reached_at: str | None, expected: bool
) -> None:
    """The network of an address alone does not: so bridges of other managers are no uplinks."""
    assert leads_out(route, reached_at) is expected
