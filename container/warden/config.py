"""Warden's own configuration file (docs/warden.md, "Configuration").

The keys are Warden's. A key that has no meaning here is refused or reported by name, never ignored in silence.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import yaml

from container.defaults import FIREWALL, FirewallName
from container.errors import ContainerError
from container.settings import DepotSettings
from container.warden.layout import CGROUP_LINKS
from container.warden.limits import DEFAULT_RLIMITS
from container.warden.service import WardenServiceSettings
from container.warden.syslog import DEFAULT_SOCKET
from wsh.units import MIB

#: Above the default ranges of a depot, so that another manager of the same host can have those.
_FIRST_UID: Final = 3_000_000_000
_MOST_CONTAINERS: Final = 16_384
_LIMIT_BYTES: Final = MIB
Level = Literal["debug", "info", "warning", "error"]
LEVELS: Final[dict[str, Level]] = {
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "fatal": "error",
    "off": "error",
}
LINUX: Final = "Warden::Container::Linux"


class WardenConfigError(ContainerError, ValueError):
    """The file cannot be used. The text names the key."""


class Quota(msgspec.Struct, frozen=True):
    disk_quota_enabled: bool = True


class ServerKeys(msgspec.Struct, frozen=True):
    """``container_grace_time``: seconds; null: never. ``job_output_limit``: bytes.

    ``cgroup_links_path`` is not Warden's: where links to the cgroups of containers are made (v1 only); null: nowhere.
    """

    container_rootfs_path: str
    container_depot_path: str
    unix_domain_path: str = "/tmp/warden.sock"  # noqa: S108  (Warden's default)
    unix_domain_permissions: int = 0o755
    container_klass: str = LINUX
    container_grace_time: int | None = 300
    container_rlimits: dict[str, int] = {}
    job_output_limit: int = 10 * MIB
    quota: Quota = Quota()
    allow_nested_warden: bool = False
    pidfile: str | None = None
    syslog_socket: str | None = None
    cgroup_links_path: str | None = str(CGROUP_LINKS)


class HealthKeys(msgspec.Struct, frozen=True):
    port: int = 2345


class LoggingKeys(msgspec.Struct, frozen=True):
    level: str = "info"
    file: str | None = None
    syslog: str | None = None


class NetworkKeys(msgspec.Struct, frozen=True):
    """``pool_start_address`` with ``pool_size`` (a number of /30) is the older way to name the pool.

    ``firewall`` is not Warden's: the back end, as in the library.
    """

    pool_network: str | None = None
    pool_start_address: str | None = None
    pool_size: int = 64
    release_delay: float = 5.0
    allow_networks: tuple[str, ...] = ()
    deny_networks: tuple[str, ...] = ()
    allow_host_access: bool = False
    mtu: int = 1500
    dns_servers: tuple[str, ...] = ()
    firewall: FirewallName = FIREWALL


class PortKeys(msgspec.Struct, frozen=True):
    pool_start_port: int = 0
    pool_size: int = 0


class UserKeys(msgspec.Struct, frozen=True):
    """Each container has 65,536 ids of its own here, so only the number of containers is taken from it."""

    pool_start_uid: int = 10000
    pool_size: int = 64


class Config(msgspec.Struct, frozen=True):
    server: ServerKeys
    health_check_server: HealthKeys = HealthKeys()
    logging: LoggingKeys = LoggingKeys()
    network: NetworkKeys = NetworkKeys()
    port: PortKeys = PortKeys()
    user: UserKeys = UserKeys()


def load(path: Path) -> tuple[Config, tuple[str, ...]]:
    """The configuration, and the keys that nobody reads. WardenConfigError: it cannot be read, or a key has a value that cannot be."""
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except OSError as e:
        raise WardenConfigError(f"{path}: {e.strerror}") from e
    if len(data) > _LIMIT_BYTES:
        raise WardenConfigError(f"{path}: larger than {_LIMIT_BYTES} bytes")
    return parse(data, str(path))


def parse(data: bytes, name: str) -> tuple[Config, tuple[str, ...]]:
    """As `load`, from bytes. ``name`` begins the text of an error."""
    try:
        tree = yaml.safe_load(data)
        config = msgspec.convert(tree, Config)
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError, ValueError) as e:
        raise WardenConfigError(f"{name}: {e}") from e
    _check(config, name)
    return config, tuple(_unknown(tree, Config, ""))


def log_level(keys: LoggingKeys) -> Level:
    """One of our four levels. Warden has several debug levels, and `fatal` and `off` above error. ValueError: it is none."""
    level = keys.level.rstrip("0123456789")
    if level not in LEVELS:
        raise ValueError(f"logging.level: expected one of {', '.join(LEVELS)}, got {keys.level!r}")
    return LEVELS[level]


def _check(config: Config, name: str) -> None:
    server = config.server
    refused: list[str] = []
    if server.container_klass != LINUX:
        refused.append(
            f"server.container_klass: expected {LINUX}; {server.container_klass} runs without isolation"
        )
    if server.allow_nested_warden:
        refused.append("server.allow_nested_warden: a container cannot hold another manager here")
    if config.logging.syslog is not None:
        refused.append("logging.syslog: not offered; use logging.file, or the service manager's log")
    if config.network.deny_networks:
        refused.append("network.deny_networks: everything is denied that allow_networks does not allow")
    try:
        log_level(config.logging)
    except ValueError as e:
        refused.append(str(e))
    if unknown := sorted(set(server.container_rlimits) - set(DEFAULT_RLIMITS)):
        refused.append(f"server.container_rlimits: no such limit: {', '.join(unknown)}")
    if refused:
        raise WardenConfigError(f"{name}: {'; '.join(refused)}")


def _unknown(tree: dict[Any, Any], kind: type[msgspec.Struct], prefix: str) -> list[str]:
    found: list[str] = []
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in tree.items():
        if key not in known:
            found.append(f"{prefix}{key}")
        elif (
            isinstance(value, dict)
            and isinstance(known[key], type)
            and issubclass(known[key], msgspec.Struct)
        ):
            found += _unknown(value, known[key], f"{prefix}{key}.")
    return found


def pool_network(keys: NetworkKeys) -> str:
    """The pool as a network. Of the older keys the size is rounded up to a power of two, as in Warden."""
    if keys.pool_network is not None:
        return keys.pool_network
    if keys.pool_start_address is None:
        return "10.254.0.0/24"
    bits = max(0, (max(1, keys.pool_size) - 1).bit_length())
    return f"{keys.pool_start_address}/{30 - bits}"


def depot_settings(config: Config) -> DepotSettings:
    server, network = config.server, config.network
    depot = Path(server.container_depot_path)
    return DepotSettings(
        depot_dir=depot,
        templates_dir=depot.with_name(f"{depot.name}.templates"),
        cgroup_parent="warden",
        table="warden",
        firewall=network.firewall,
        pool_network=pool_network(network),
        release_delay_s=network.release_delay,
        mtu=network.mtu,
        dns_servers=network.dns_servers,
        allow_networks=network.allow_networks,
        allow_host_access=network.allow_host_access,
        port_first=config.port.pool_start_port,
        port_count=config.port.pool_size,
        uid_first=_FIRST_UID,
        uid_count=min(config.user.pool_size, _MOST_CONTAINERS),
        disk_limits=server.quota.disk_quota_enabled,
    )


def service_settings(config: Config) -> WardenServiceSettings:
    server = config.server
    return WardenServiceSettings(
        rootfs=Path(server.container_rootfs_path),
        grace_s=server.container_grace_time,
        rlimits=server.container_rlimits,
        job_output_limit_bytes=server.job_output_limit,
        disk_limits=server.quota.disk_quota_enabled,
        lang=os.environ.get("LANG") or "en_US.UTF-8",
        cgroup_links=Path(server.cgroup_links_path) if server.cgroup_links_path else None,
        syslog_socket=Path(server.syslog_socket) if server.syslog_socket else DEFAULT_SOCKET,
    )
