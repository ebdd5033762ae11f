"""Spec, leases and facts of the host -> the launch plan for wshd (PROTOCOL.md, "1. The launch plan"). Pure.

The same input gives the same plan, so a plan in a bug report can be run again by hand. Nothing here looks
at the disk: what has to be looked up (does a stack have a /home/vcap, what does the host's resolv.conf say)
comes in as `LaunchFacts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from container.pools import IDS_PER_CONTAINER, IdLease
from container.resolver import Resolver
from container.spec import BindMount, ContainerSpec
from wsh.vcap import VCAP_HOME

#: capabilities(7) numbers. Never CAP_SYS_ADMIN: the masks inside rest on its absence (docs/wshd.md, "Isolation").
_CAPABILITIES: Final = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "SYS_CHROOT": 18,
    "SETFCAP": 31,
}
BOUNDING_SET: Final = sum(1 << number for number in _CAPABILITIES.values())

#: volatile: an upper is thrown away after a host crash. redirect_dir: else rename of a directory gives EXDEV. index: else the
#: names of a hard link part at the first write (overlayfs.rst, "Index"); where a lower has no file handles the kernel goes without.
OVERLAY_OPTIONS: Final = "volatile,redirect_dir=on,index=on"


@dataclass(frozen=True, slots=True)
class Ethernet:
    """How eth0 is set up inside."""

    address: str
    prefix: int
    gateway: str
    gateway_mac: str
    mtu: int


@dataclass(frozen=True, slots=True)
class LaunchFacts:
    """What the plan needs to know of this host and of what has been made for the container already."""

    handle: str
    hostname: str
    ids: IdLease
    upper_dir: Path
    home_upper_dir: Path
    stack_homes: tuple[Path, ...]  # those of the spec's layers that exist, topmost first
    cgroup_init: tuple[Path, ...]
    cgroup_job: tuple[Path, ...]
    cgroup_shown: tuple[str, ...]  # hierarchies as CgroupSet.shown has them
    ethernet: Ethernet | None
    resolver: Resolver
    seccomp: bytes
    socket: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """Directives in order; `words` is what wshd reads."""

    directives: tuple[tuple[str, ...], ...]

    def words(self) -> bytes:
        return b"".join(_word(value) + b"\0" for directive in self.directives for value in directive)

    def values(self, name: str) -> list[tuple[str, ...]]:
        return [directive[1:] for directive in self.directives if directive[0] == name]


def _word(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    assert b"\0" not in raw, f"a word of a plan holds a NUL: {value!r}"
    return raw


def hosts_file(hostname: str, address: str | None) -> str:
    """/etc/hosts, as Warden made it."""
    lines = ["127.0.0.1 localhost", f"{address or '127.0.0.1'} {hostname}"]
    return "\n".join(lines) + "\n"


def _access(bind: BindMount) -> str:
    return bind.access.value + ("-mapped" if bind.mapped else "")


def make_plan(spec: ContainerSpec, facts: LaunchFacts) -> Plan:
    directives: list[tuple[str, ...]] = [
        ("version", "1"),
        ("handle", facts.handle),
        ("hostname", facts.hostname),
        ("ids", str(facts.ids.first), str(IDS_PER_CONTAINER)),
    ]
    directives += [("layer", str(layer)) for layer in spec.layers]
    directives.append(("upper", str(facts.upper_dir)))
    if spec.home_layers:
        directives.append(("home", VCAP_HOME))
        directives += [("home-layer", str(layer)) for layer in (*spec.home_layers, *facts.stack_homes)]
        directives.append(("home-upper", str(facts.home_upper_dir)))
    directives.append(("overlay", OVERLAY_OPTIONS))
    directives += [("bind", str(bind.source), bind.target, _access(bind)) for bind in spec.binds]
    address = facts.ethernet.address if facts.ethernet is not None else None
    directives += [
        ("file", "/etc/hosts", "0644", hosts_file(facts.hostname, address)),
        ("file", "/etc/hostname", "0644", facts.hostname + "\n"),
        ("file", "/etc/resolv.conf", "0644", facts.resolver.text),
        ("shm", str(spec.shm_bytes)),
    ]
    directives += [("cgroup-init", str(file)) for file in facts.cgroup_init]
    directives += [("cgroup-job", str(file)) for file in facts.cgroup_job]
    directives += [("cgroup-mount", controllers) for controllers in facts.cgroup_shown]
    if facts.ethernet is None:
        directives.append(("net", "none"))
    else:
        eth = facts.ethernet
        directives.append(("net", "veth"))
        directives.append(("eth0", eth.address, str(eth.prefix), eth.gateway, eth.gateway_mac, str(eth.mtu)))
    directives.append(("bounding", f"{BOUNDING_SET:x}"))
    if facts.seccomp:
        directives.append(("seccomp", facts.seccomp.hex()))
    directives.append(("socket", str(facts.socket)))
    return Plan(tuple(directives))
