"""Whether a container's rules permit a connection that exists, as the firewall would decide about its first packet. Pure.

The kernel lets established connections pass without a look at the rules. When rules were taken away, their connections
must be found by the same decision (docs/network.md, "Egress rules").
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from container.network.policy import Egress, Permits, Policy
from container.spec import Protocol, parse_network

_NUMBERS: Final = {1: Protocol.ICMP, 6: Protocol.TCP, 17: Protocol.UDP}
_DNS_PORT: Final = 53


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection as its container began it. ``address``: what it dialled. ``port`` 0: the protocol has none."""

    address: str
    protocol_number: int
    port: int


def is_permitted(flow: Flow, egress: Egress, policy: Policy, is_own: Callable[[str], bool]) -> bool:
    """``is_own``: whether an address is one of the host's own.

    Types of ICMP are not looked at: a connection of ICMP is permitted if some rule permits ICMP to that address.
    """
    protocol = _NUMBERS.get(flow.protocol_number)
    if (
        flow.port == _DNS_PORT
        and protocol in (Protocol.TCP, Protocol.UDP)
        and flow.address in policy.dns_servers
    ):
        return True
    own = is_own(flow.address)
    if (own and policy.allow_host_access) or _is_in(flow.address, policy.allow_networks):
        return True
    permits = egress.inner if own or _is_in(flow.address, policy.closed) else egress.outer
    return _matches(flow, protocol, permits)


def _matches(flow: Flow, protocol: Protocol | None, permits: Permits) -> bool:
    address = ipaddress.IPv4Address(flow.address)
    return any(
        one.first <= address <= one.last
        and one.protocol in (Protocol.ALL, protocol)
        and (one.ports is None or one.ports.first <= flow.port <= one.ports.last)
        for one in permits
    )


def _is_in(address: str, networks: tuple[str, ...]) -> bool:
    found = ipaddress.IPv4Address(address)
    return any(first <= found <= last for first, last in map(parse_network, networks))
