"""What a caller may ask for: frozen, typed, validated values.

Pure. Nothing here touches the kernel; a value that exists is a value that makes sense. A wrong one is refused
with :class:`SpecError`, which names the field and what was expected.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path, PurePosixPath
from typing import Final

from container.errors import ContainerError
from wsh.units import MIB
from wsh.vcap import VCAP_HOME, VCAP_ID

#: Lowers that fsconfig takes at most on Linux 6.1.
MAX_LAYERS = 15

_HANDLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")


class SpecError(ContainerError, ValueError):
    """A request that makes no sense: ``field`` says where, the text what was expected and what came."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Access(StrEnum):
    """How a bind mount is shown inside."""

    READ_ONLY = "ro"
    READ_WRITE = "rw"


class Past(StrEnum):
    """What happens to a job whose output passes its limit (docs/containers.md, "Jobs and output")."""

    KILL = "kill"
    DROP_OLDEST = "drop-oldest"
    BLOCK = "block"


class Protocol(StrEnum):
    """Of an egress rule (all four) or of a published port (TCP, UDP)."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    ALL = "all"


class User(IntEnum):
    """Users that every stack has; numbers are those inside the container. A job may run as any other number too."""

    VCAP = VCAP_ID
    ROOT = 0


#: The last id of a container's range is wshd's own.
MAX_USER: Final = 65534
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of a job whose environment has none."""


def _inside(field_name: str, path: str) -> None:
    if not path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise SpecError(field_name, f"expected an absolute path without '..', got {path!r}")


@dataclass(frozen=True, slots=True)
class BindMount:
    """A directory or file of the host shown inside at ``target``. ``mapped``: the numbers of its owners are those inside, as
    with a layer; else they are the host's, and what is not everybody's is closed to vcap and root alike.
    """

    source: Path
    target: str
    access: Access = Access.READ_ONLY
    mapped: bool = False

    def __post_init__(self) -> None:
        if not self.source.is_absolute() or "\0" in str(self.source):
            raise SpecError("binds.source", f"expected an absolute path, got {str(self.source)!r}")
        _inside("binds.target", self.target)


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports from ``first`` to ``last``, both included. SpecError."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 65535:
            raise SpecError("ports", f"expected 1 <= first <= last <= 65535, got {self.first}-{self.last}")


def parse_network(text: str) -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]:
    """First and last address of ``ip``, ``ip/prefix`` or ``ip-ip``, the forms that Warden takes."""
    try:
        if "-" in text:
            first, last = (ipaddress.IPv4Address(part.strip()) for part in text.split("-", 1))
            if first > last:
                raise SpecError("networks", f"expected first <= last, got {text!r}")
            return first, last
        net = ipaddress.IPv4Network(text, strict=False)
        return net.network_address, net.broadcast_address
    except SpecError:
        raise
    except ValueError as e:
        raise SpecError("networks", f"expected an IPv4 address, network or range, got {text!r}") from e


@dataclass(frozen=True, slots=True)
class EgressRule:
    """One permission to reach out. No networks: anywhere (but never the closed ranges). No ports: all."""

    protocol: Protocol
    networks: tuple[str, ...] = ()
    ports: tuple[PortRange, ...] = ()
    icmp_type: int | None = None
    icmp_code: int | None = None
    log: bool = False

    def __post_init__(self) -> None:
        for network in self.networks:
            parse_network(network)
        if self.ports and self.protocol not in (Protocol.TCP, Protocol.UDP):
            raise SpecError("ports", f"only tcp and udp have ports, got {self.protocol.value}")
        for name, value in (("icmp_type", self.icmp_type), ("icmp_code", self.icmp_code)):
            if value is not None and not 0 <= value <= 255:
                raise SpecError(name, f"expected 0..255, got {value}")


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the host that leads inside. No host port: one of the pool; no container port: the same."""

    protocol: Protocol = Protocol.TCP
    host_port: int | None = None
    container_port: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in (Protocol.TCP, Protocol.UDP):
            raise SpecError("protocol", f"expected tcp or udp, got {self.protocol.value}")
        for name, port in (("host_port", self.host_port), ("container_port", self.container_port)):
            if port is not None and not 1 <= port <= 65535:
                raise SpecError(name, f"expected 1..65535, got {port}")


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A limit of a container's traffic: a rate in bytes a second, and how many bytes may pass at once after a pause.

    Both count Ethernet frames. A burst must hold one packet, whose size the depot knows (its mtu and 14 bytes). SpecError.
    """

    rate_bytes_s: int
    burst_bytes: int

    def __post_init__(self) -> None:
        for name, most in (("rate_bytes_s", 2**64 - 1), ("burst_bytes", 2**32 - 1)):
            if not 1 <= (value := getattr(self, name)) <= most:
                raise SpecError(f"bandwidth.{name}", f"expected 1 to {most}, got {value}")


@dataclass(frozen=True, slots=True)
class CpuCap:
    """A hard limit of processor time, in microseconds: ``quota_us`` of all processors together in each ``period_us``.

    ``burst_us``: how much of what former periods left over may be used besides (cgroup-v2.rst, cpu.max.burst). SpecError.
    """

    quota_us: int
    period_us: int = 100_000
    burst_us: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("period_us", 1000, 1_000_000),
            ("quota_us", 1000, 2**44),
            ("burst_us", 0, self.quota_us),
        ):
            if not least <= (value := getattr(self, name)) <= most:
                raise SpecError(f"cpu_cap.{name}", f"expected {least} to {most}, got {value}")


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit. Inodes of a disk are fixed at create, and so is what its limit may be raised to later:
    ``disk_max_bytes``, None: ``disk_bytes``. ``bandwidth`` holds for each direction.
    """

    memory_bytes: int | None = None
    cpu_shares: int | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    disk_inodes: int = 200_000
    disk_max_bytes: int | None = None
    bandwidth: Bandwidth | None = None
    cpu_cap: CpuCap | None = None

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "cpu_shares", "pids", "disk_bytes", "disk_inodes", "disk_max_bytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SpecError(f"limits.{name}", f"expected a positive integer, got {value}")


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container to be made.

    ``layers`` are the lowers of the root overlay, topmost first; ``home_layers`` those of the second overlay
    at /home/vcap (the stack's own home directory is added below them). ``address``: any address of the /30 that it gets;
    None: the one that has rested longest. ``properties`` are opaque and are kept.
    """

    layers: tuple[Path, ...]
    home_layers: tuple[Path, ...] = ()
    handle: str | None = None
    hostname: str | None = None
    binds: tuple[BindMount, ...] = ()
    limits: Limits = Limits()
    ports: tuple[PortMapping, ...] = ()
    egress: tuple[EgressRule, ...] = ()
    network: bool = True
    address: str | None = None
    shm_bytes: int = 64 * MIB
    properties: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise SpecError("layers", f"expected 1 to {MAX_LAYERS}, got {len(self.layers)}")
        if len(self.home_layers) > MAX_LAYERS - 1:
            raise SpecError("home_layers", f"expected at most {MAX_LAYERS - 1}, got {len(self.home_layers)}")
        for layer in (*self.layers, *self.home_layers):
            if not layer.is_absolute():
                raise SpecError("layers", f"expected absolute paths, got {str(layer)!r}")
        if self.handle is not None and not _HANDLE.match(self.handle):
            raise SpecError("handle", f"expected 1 to 63 of [A-Za-z0-9_.-], got {self.handle!r}")
        if self.hostname is not None and not _HOSTNAME.match(self.hostname):
            raise SpecError("hostname", f"expected a host name, got {self.hostname!r}")
        if not self.network and (self.ports or self.egress or self.address or self.limits.bandwidth):
            raise SpecError("network", "ports, egress rules, an address and a bandwidth need a network")
        if self.address is not None:
            parse_network(f"{self.address}/30")


@dataclass(frozen=True, slots=True)
class Output:
    """How much output is kept, in bytes, and what happens past it."""

    limit_bytes: int | None = 10 * MIB
    past: Past = Past.DROP_OLDEST


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A program to run inside.

    ``env``: ``NAME=VALUE`` words; the job has these and no others, but for a `DEFAULT_PATH` where there is no PATH.
    ``user``: the number inside of its user and group, 0 to `MAX_USER` - 1. ``rlimits``: name in small letters
    (``nofile``, ``nproc``, ...) to value, soft and hard; `resource.RLIM_INFINITY`: no limit. ``job_id`` None: a number is given.
    """

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: int = User.VCAP
    cwd: str = VCAP_HOME
    rlimits: Mapping[str, int] = field(default_factory=dict)
    umask: int = 0o022
    output: Output = Output()
    job_id: str | None = None
    stdin: bytes | None = None

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise SpecError("argv", "expected at least a program")
        for name, words in (("argv", self.argv), ("env", self.env)):
            for word in words:
                if "\0" in word:
                    raise SpecError(name, "a word holds a NUL byte")
        for word in self.env:
            if word.find("=") < 1:
                raise SpecError("env", f"expected NAME=VALUE, got {word[:40]!r}")
        _inside("cwd", self.cwd)
        if not 0 <= self.user < MAX_USER:
            raise SpecError("user", f"expected 0 to {MAX_USER - 1}, got {self.user}")
        if self.job_id is not None and not _HANDLE.match(self.job_id):
            raise SpecError("job_id", f"expected 1 to 63 of [A-Za-z0-9_.-], got {self.job_id!r}")

    @property
    def environment(self) -> tuple[str, ...]:
        """What the job really has."""
        if any(word.startswith("PATH=") for word in self.env):
            return self.env
        return (*self.env, f"PATH={DEFAULT_PATH}")
