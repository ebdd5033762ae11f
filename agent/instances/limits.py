"""From the bus's limits and rules to the container's. Pure (dea-bus.md 2.7)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from agent.bus.messages import EgressMessage
from agent.config import BindMountSettings, InstanceSettings
from container import Access, BindMount, EgressRule, PortRange, Protocol, SpecError

MIB = 1 << 20


def cpu_shares(memory_mb: int, settings: InstanceSettings) -> int:
    shares = memory_mb // settings.memory_to_cpu_share_ratio
    return min(max(shares, settings.min_cpu_share_limit), settings.max_cpu_share_limit)


def _ports(text: str) -> tuple[PortRange, ...]:
    found = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            found.append(PortRange(int(first), int(last) if dash else int(first)))
        except ValueError as e:
            raise SpecError("egress_network_rules.ports", f"expected 80 or 1000-2000, got {part!r}") from e
    return tuple(found)


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

    networks = tuple(part.strip() for part in message.destination.split(",") if part.strip())
    return EgressRule(
        protocol,
        networks,
        _ports(message.ports) if ported and message.ports else (),
        given(message.type),
        given(message.code),
        bool(message.log),
    )


def egress_rules(messages: Iterable[EgressMessage]) -> tuple[EgressRule, ...]:
    """In order, those with `log` after all others. SpecError: a rule makes no sense (the start fails)."""
    rules = [_rule(message) for message in messages]
    return tuple(sorted(rules, key=lambda rule: rule.log))


def bind_mounts(settings: Iterable[BindMountSettings]) -> tuple[BindMount, ...]:
    return tuple(
        BindMount(one.src_path, one.dst_path or str(one.src_path), Access(one.mode)) for one in settings
    )


def rootfs_of(package_path: Path) -> Path:
    """A stack's tree: ours has it below `rootfs`, any other directory is one itself. The version, not the link to it."""
    real = package_path.resolve()
    return real / "rootfs" if (real / "manifest.json").is_file() else real
