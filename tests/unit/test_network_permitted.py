"""Whether rules permit a connection that exists: the firewall's decision, as a value (container/network/permitted.py)."""

from __future__ import annotations

import pytest

from container.network.permitted import Flow, is_permitted
from container.network.policy import Policy, make_egress
from container.spec import EgressRule, PortRange, Protocol

pytestmark = pytest.mark.unit

ANYWHERE = EgressRule(Protocol.ALL, ("0.0.0.0/0",))
WEB = EgressRule(Protocol.TCP, ("203.0.113.0/24",), (PortRange(80, 88), PortRange(443, 443)))
OWN = "198.51.100.1"
TCP, UDP, ICMP, GRE = 6, 17, 1, 47


@pytest.mark.parametrize(
    ("rules", "flow", "permitted"),
    [
        ((), Flow("203.0.113.1", TCP, 80), False),
        ((WEB,), Flow("203.0.113.1", TCP, 80), True),
        ((WEB,), Flow("203.0.113.1", TCP, 88), True),
        ((WEB,), Flow("203.0.113.1", TCP, 89), False),
        ((WEB,), Flow("203.0.113.1", TCP, 443), True),
        ((WEB,), Flow("203.0.113.1", UDP, 80), False),
        ((WEB,), Flow("203.0.112.255", TCP, 80), False),
        ((WEB,), Flow("203.0.114.0", TCP, 80), False),
        ((ANYWHERE,), Flow("203.0.113.1", GRE, 0), True),
        ((ANYWHERE,), Flow("10.254.0.6", TCP, 80), False),  # another container
        ((ANYWHERE,), Flow("169.254.169.254", TCP, 80), False),
        ((ANYWHERE,), Flow(OWN, TCP, 80), False),
        ((EgressRule(Protocol.TCP, (OWN,)),), Flow(OWN, TCP, 80), True),
        ((EgressRule(Protocol.ICMP, ("203.0.113.1",), icmp_type=8),), Flow("203.0.113.1", ICMP, 0), True),
        ((EgressRule(Protocol.ICMP, ("203.0.113.1",)),), Flow("203.0.113.1", TCP, 0), False),
        ((EgressRule(Protocol.TCP, ("10.254.0.0/24",)),), Flow("10.254.0.6", TCP, 7100), True),
    ],
)
def test_rules_decide_as_about_a_first_packet(
    rules: tuple[EgressRule, ...], flow: Flow, permitted: bool
) -> None:
    policy = Policy("10.254.0.0/16")
    assert is_permitted(flow, make_egress(rules, policy), policy, lambda address: address == OWN) is permitted


@pytest.mark.parametrize(
    ("policy", "flow", "permitted"),
    [
        (Policy("10.254.0.0/16", dns_servers=("203.0.113.53",)), Flow("203.0.113.53", UDP, 53), True),
        (Policy("10.254.0.0/16", dns_servers=("203.0.113.53",)), Flow("203.0.113.53", TCP, 53), True),
        (Policy("10.254.0.0/16", dns_servers=("203.0.113.53",)), Flow("203.0.113.53", TCP, 80), False),
        (Policy("10.254.0.0/16", dns_servers=("203.0.113.53",)), Flow("203.0.113.54", UDP, 53), False),
        (Policy("10.254.0.0/16", dns_servers=("203.0.113.53",)), Flow("203.0.113.53", GRE, 53), False),
        (Policy("10.254.0.0/16", allow_networks=("10.0.0.0/8",)), Flow("10.254.3.2", TCP, 80), True),
        (Policy("10.254.0.0/16", allow_networks=("10.0.0.0/8",)), Flow("11.0.0.1", TCP, 80), False),
        (Policy("10.254.0.0/16", allow_host_access=True), Flow(OWN, TCP, 80), True),
        (Policy("10.254.0.0/16", allow_host_access=True), Flow("203.0.113.1", TCP, 80), False),
    ],
)
def test_settings_of_all_containers_count(policy: Policy, flow: Flow, permitted: bool) -> None:
    assert is_permitted(flow, make_egress((), policy), policy, lambda address: address == OWN) is permitted
