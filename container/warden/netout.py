"""From a NetOut request to an egress rule. Pure."""

from __future__ import annotations

from container.spec import EgressRule, PortRange, Protocol, SpecError
from container.warden import messages as m
from container.warden.errors import WardenError, text_of

_PROTOCOLS = {
    m.NetProtocol.TCP: Protocol.TCP,
    m.NetProtocol.UDP: Protocol.UDP,
    m.NetProtocol.ICMP: Protocol.ICMP,
    m.NetProtocol.ALL: Protocol.ALL,
}


def egress_rule(request: m.NetOutRequest) -> EgressRule:
    """WardenError: the request names nothing to permit, or nothing that can be."""
    if not request.network and not request.port and not request.port_range:
        raise WardenError("Please specify network, port, and/or port_range.")
    protocol = _PROTOCOLS[m.NetProtocol.TCP if request.protocol is None else request.protocol]
    is_icmp = protocol is Protocol.ICMP
    try:
        return EgressRule(
            protocol,
            networks=(text_of(request.network),) if request.network else (),
            ports=_ports(request),
            icmp_type=_icmp(request.icmp_type) if is_icmp else None,
            icmp_code=_icmp(request.icmp_code) if is_icmp and _icmp(request.icmp_type) is not None else None,
            log=bool(request.log),
        )
    except SpecError as e:
        raise WardenError(str(e)) from e


def _icmp(number: int | None) -> int | None:
    """-1 is any, as no number is."""
    return None if number == -1 else number


def _ports(request: m.NetOutRequest) -> tuple[PortRange, ...]:
    if request.port_range:
        first, colon, last = text_of(request.port_range).partition(":")
        if not first.isdecimal() or (colon and not last.isdecimal()):
            raise WardenError(f"port_range: expected FIRST:LAST, got {text_of(request.port_range)!r}")
        if colon and int(first) >= int(last):
            raise WardenError("Port range maximum must be greater than minimum")
        return (PortRange(int(first), int(last or first)),)
    return (PortRange(request.port, request.port),) if request.port else ()
