"""Converts the limits and egress rules of a message to those of a container. Pure (docs/protocol.md, "Limits").

Containers have no IPv6. A security group may name both families, so the IPv6 part of a rule is left out and does not make
the start fail. `ipv6_left_out` lists the parts that were left out, for the log.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec

from agent.bus.messages import EgressMessage
from agent.config import BindMountSettings, InstanceSettings
from container import Access, BindMount, EgressRule, PortRange, Protocol, SpecError, parse_network

ICMP_OF_IPV6 = ("icmpv6", "icmp6")


def cpu_shares(memory_mb: int, settings: InstanceSettings) -> int:
    """The CPU shares of an app, in proportion to its memory, within the configured bounds."""
    shares = memory_mb // settings.memory_to_cpu_share_ratio
    return min(max(shares, settings.min_cpu_share_limit), settings.max_cpu_share_limit)


def _ports(text: str) -> tuple[PortRange, ...]:
    found = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            found.append(PortRange(int(first), int(last) if dash else int(first)))
        except ValueError as e:
            raise SpecError(
                "egress_network_rules.ports",
                f"expected a port such as 80 or a range such as 1000-2000, got {part!r}",
            ) from e
    return tuple(found)


def _networks(destination: str) -> tuple[str, ...]:
    words = _words(destination)
    for word in words:
        try:
            parse_network(word)
        except SpecError as e:
            raise SpecError("egress_network_rules.destination", str(e).removeprefix(f"{e.field}: ")) from e
    return words


def _rule(message: EgressMessage) -> EgressRule:
    try:
        protocol = Protocol(message.protocol)
    except ValueError:
        raise SpecError(
            "egress_network_rules.protocol", f"expected tcp, udp, icmp or all, got {message.protocol!r}"
        ) from None
    ported = protocol in (Protocol.TCP, Protocol.UDP)
    icmp = protocol is Protocol.ICMP

    def given(value: int | None) -> int | None:
        return value if icmp and value is not None and value >= 0 else None

    return EgressRule(
        protocol,
        _networks(message.destination),
        _ports(message.ports) if ported and message.ports else (),
        given(message.type),
        given(message.code),
        bool(message.log),
    )


def _words(destination: str) -> tuple[str, ...]:
    return tuple(word for part in destination.split(",") if (word := part.strip()))


def _is_ipv6(word: str) -> bool:
    """True for an IPv6 address, network or range. An invalid word is not IPv6: `_rule` raises the error for it."""
    first, dash, last = word.partition("-")
    try:
        ends = [
            ipaddress.ip_network(end.strip(), strict=False) for end in ((first, last) if dash else (word,))
        ]
    except ValueError:
        return False
    return all(end.version == 6 for end in ends)


def _without_ipv6(message: EgressMessage) -> EgressMessage | None:
    """The rule without its IPv6 destinations. None: it has no others.

    A rule without any destination means all of them and is kept; it must not become one by losing its IPv6 destinations.
    """
    if message.protocol in ICMP_OF_IPV6:
        return None
    words = _words(message.destination)
    left = [word for word in words if not _is_ipv6(word)]
    if words and not left:
        return None
    return msgspec.structs.replace(message, destination=",".join(left)) if left != list(words) else message


def egress_rules(messages: Iterable[EgressMessage]) -> tuple[EgressRule, ...]:
    """The container's rules, in order, but those with `log` after all others. SpecError: a rule is invalid."""
    rules = [_rule(left) for message in messages if (left := _without_ipv6(message)) is not None]
    return tuple(sorted(rules, key=lambda rule: rule.log))


def ipv6_left_out(messages: Iterable[EgressMessage]) -> tuple[str, ...]:
    """The parts of the rules that have no effect, each as text for the log: `tcp 2001:db8::/32`."""
    return tuple(
        f"{message.protocol} {word}".strip()
        for message in messages
        for word in _words(message.destination) or ("",)
        if message.protocol in ICMP_OF_IPV6 or _is_ipv6(word)
    )


def bind_mounts(settings: Iterable[BindMountSettings]) -> tuple[BindMount, ...]:
    return tuple(
        BindMount(one.src_path, one.dst_path or str(one.src_path), Access(one.mode)) for one in settings
    )
