"""config.yml as one frozen value. A setting is one row: key, type, default, check; its meaning stands in config.yml.

Keys follow the DEA's and Warden's where those have one (dea-bus.md 7, warden.md F), as nested sections. Whatever is wrong is
told with its key path and line, all of it at once; a misspelt key gets the nearest right one.
"""

from __future__ import annotations

import copy
import difflib
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml
from msgspec import Meta, Struct, field

Positive = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(gt=0, le=1)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Text = Annotated[str, Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class ConfigError:
    """``line`` is 0 where there is none (a missing key)."""

    key_path: str
    message: str
    line: int = 0


class ConfigErrors(Exception):
    """Everything that is wrong with a file."""

    def __init__(self, path: Path, errors: tuple[ConfigError, ...]) -> None:
        super().__init__("\n".join(f"{path}:{one.line}  {one.key_path}: {one.message}" for one in errors))
        self.path = path
        self.errors = errors


class _Section(Struct, frozen=True):
    """Unknown keys are `_unknown`'s affair, which has the nearest name for each."""


class TlsSettings(_Section, frozen=True):
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class NatsSettings(_Section, frozen=True):
    servers: Annotated[tuple[Text, ...], Meta(min_length=1)] = ("nats://127.0.0.1:4222",)
    user: str | None = None
    password: str | None = None
    credentials_file: Path | None = None
    nkey_seed_file: Path | None = None
    tls: TlsSettings | None = None


class StackSettings(_Section, frozen=True):
    name: Text
    package_path: Path


class PlacementSettings(_Section, frozen=True):
    zone: Text = "default"


class IntervalSettings(_Section, frozen=True):
    heartbeat: Seconds = 10.0
    advertise: Seconds = 5.0
    router_register_in_seconds: Seconds = 20.0
    stats: Seconds = 10.0


class ResourceSettings(_Section, frozen=True):
    memory_mb: Positive | None = None
    memory_overcommit_factor: Annotated[float, Meta(gt=0)] = 1.0
    disk_mb: Positive | None = None
    disk_overcommit_factor: Annotated[float, Meta(gt=0)] = 1.0
    low_water_mb: Annotated[int, Meta(ge=0)] = 1024


class InstanceSettings(_Section, frozen=True):
    memory_to_cpu_share_ratio: Positive = 8
    max_cpu_share_limit: Positive = 256
    min_cpu_share_limit: Positive = 1
    disk_inode_limit: Positive = 200_000
    nproc_limit: Positive = 512
    output_limit_bytes: Positive = 10 << 20
    stop_grace_s: Annotated[float, Meta(ge=0)] = 10.0
    unregister_wait_s: Annotated[float, Meta(ge=0)] = 1.0
    drain_s: Annotated[float, Meta(ge=0)] = 0.1


class StagingSettings(_Section, frozen=True):
    enabled: bool = True
    memory_limit_mb: Positive = 1024
    disk_limit_mb: Positive = 2048
    disk_inode_limit: Positive = 200_000
    cpu_limit_shares: Positive = 512
    max_staging_duration: Seconds = 900.0
    nproc_limit: Positive = 1024


class BindMountSettings(_Section, frozen=True):
    src_path: Path
    dst_path: str | None = None
    mode: Literal["ro", "rw"] = "ro"


class NetworkSettings(_Section, frozen=True):
    pool_network: Text = "10.254.0.0/16"
    release_delay: Annotated[float, Meta(ge=0)] = 5.0
    allow_networks: tuple[str, ...] = ()
    allow_host_access: bool = False
    publish_ports_to: Literal["everybody", "host"] = "everybody"
    mtu: Annotated[int, Meta(ge=576, le=65535)] = 1500
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] | None = None
    dns_options: tuple[str, ...] | None = None
    uplinks: tuple[Text, ...] = ()


class PortSettings(_Section, frozen=True):
    pool_start_port: Port | None = None
    pool_size: Positive | None = None
    rest_s: Annotated[float, Meta(ge=0)] = 120.0


class UserSettings(_Section, frozen=True):
    pool_start_uid: Annotated[int, Meta(ge=65536, le=4_000_000_000)] = 1_000_000_000
    pool_size: Positive = 16_384


class LoggingSettings(_Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: Path | None = None
    format: Literal["auto", "json", "console"] = "auto"


class ShutdownSettings(_Section, frozen=True):
    deadline_s: Seconds = 30.0


class ConcurrencySettings(_Section, frozen=True):
    concurrent: Positive = 8


class DownloadSettings(_Section, frozen=True):
    concurrent: Positive = 8
    stall_s: Seconds = 30.0


class Settings(_Section, frozen=True):
    """The whole file. Section names are the keys."""

    base_dir: Path
    index: Annotated[int, Meta(ge=0)] = 0
    cgroup_parent: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+$")] = "garrison"
    nats: NatsSettings = field(default_factory=NatsSettings)
    stacks: tuple[StackSettings, ...] = ()
    domain: str = "localhost"
    local_ip: str | None = None
    placement_properties: PlacementSettings = field(default_factory=PlacementSettings)
    intervals: IntervalSettings = field(default_factory=IntervalSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    instance: InstanceSettings = field(default_factory=InstanceSettings)
    staging: StagingSettings = field(default_factory=StagingSettings)
    default_health_check_timeout: Seconds = 60.0
    crash_lifetime_secs: Seconds = 3600.0
    evacuation_bail_out_time_in_seconds: Seconds = 600.0
    bind_mounts: tuple[BindMountSettings, ...] = ()
    post_setup_hook: str | None = None
    network: NetworkSettings = field(default_factory=NetworkSettings)
    port: PortSettings = field(default_factory=PortSettings)
    user: UserSettings = field(default_factory=UserSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    shutdown: ShutdownSettings = field(default_factory=ShutdownSettings)
    starts: ConcurrencySettings = field(default_factory=ConcurrencySettings)
    downloads: DownloadSettings = field(default_factory=DownloadSettings)

    @property
    def control_socket(self) -> Path:
        return self.base_dir / "agent.sock"


def load(path: Path) -> Settings:
    """The settings of a file. ConfigErrors: what is wrong, all of it. OSError: it cannot be read."""
    settings, errors = _read(path)
    if errors or settings is None:
        raise ConfigErrors(path, tuple(errors))
    return settings


def check(path: Path) -> tuple[ConfigError, ...]:
    """What is wrong with a file; empty: nothing."""
    return tuple(_read(path)[1])


def _read(path: Path) -> tuple[Settings | None, list[ConfigError]]:
    try:
        text = path.read_text()
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        values = yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        mark = getattr(e, "problem_mark", None)
        return None, [ConfigError("", f"no YAML: {getattr(e, 'problem', e)}", mark.line + 1 if mark else 0)]
    if not isinstance(values, dict):
        return None, [ConfigError("", "expected a mapping of sections")]
    lines = dict(_lines(node, ""))
    settings, errors = _convert(values)
    errors = [*_unknown(Settings, values, ""), *errors]
    if settings is not None:
        errors += _sensible(settings)
    placed = [ConfigError(e.key_path, e.message, _line(lines, e.key_path)) for e in errors]
    return settings, sorted(placed, key=lambda e: e.line)


def _line(lines: dict[str, int], key_path: str) -> int:
    while key_path and key_path not in lines:
        key_path = key_path.rpartition(".")[0] if "." in key_path else ""
    return lines.get(key_path, 0)


def _lines(node: Any, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = f"{path}.{key.value}" if path else str(key.value)
            yield below, key.start_mark.line + 1
            yield from _lines(value, below)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield f"{path}[{number}]", value.start_mark.line + 1
            yield from _lines(value, f"{path}[{number}]")


def _section_of(kind: Any) -> type[Struct] | None:
    """The section that a field's type holds, also within a tuple or an optional."""
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, Struct):
            return one
    return None


def _unknown(section: type[Struct], values: dict[Any, Any], path: str) -> Iterator[ConfigError]:
    known = {one.name: one for one in msgspec.structs.fields(section)}
    for key, value in values.items():
        at = f"{path}.{key}" if path else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {f'{path}.' if path else ''}{near[0]}?" if near else ""
            yield ConfigError(at, f"unknown key{hint}")
            continue
        below = _section_of(known[key].type)
        if below is not None:
            for number, one in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(one, dict):
                    yield from _unknown(below, one, f"{at}[{number}]" if isinstance(value, list) else at)


def _convert(values: dict[str, Any]) -> tuple[Settings | None, list[ConfigError]]:
    """msgspec names one wrong value; the others show once that one is taken out."""
    errors: list[ConfigError] = []
    left = copy.deepcopy(values)
    while True:
        try:
            settings = msgspec.convert(left, Settings, dec_hook=_path)
        except msgspec.ValidationError as e:
            error, parts = _first_wrong(str(e), left)
            errors.append(error)
            if not parts or not _take_out(left, parts):
                return None, errors
        else:
            return (None if errors else settings), errors


def _first_wrong(text: str, values: Any) -> tuple[ConfigError, tuple[str | int, ...]]:
    """What msgspec says, in our words: `intervals.heartbeat: expected float, got '10s'`."""
    message, _, where = text.partition(" - at `$")
    message = message.replace("`", "")
    key_path = where.rstrip("`").lstrip(".")
    parts = tuple(int(word) if word.isdigit() else word for word in re.findall(r"[^.\[\]]+", key_path))
    found: Any = values
    for part in parts:
        found = found[part]
    if message.startswith("Expected"):
        message = f"expected{message.removeprefix('Expected').partition(', got ')[0]}, got {found!r}"
    elif parts and not isinstance(found, dict | list):
        message += f", got {found!r}"
    return ConfigError(key_path, message), parts


def _take_out(values: Any, parts: tuple[str | int, ...]) -> bool:
    """False: it was needed, or its place in a list matters."""
    *above, last = parts
    for part in above:
        values = values[part]
    if isinstance(values, list) or "base_dir" in parts:
        return False
    del values[last]
    return True


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError(f"expected a path, got {value!r}")


def _sensible(settings: Settings) -> Iterator[ConfigError]:
    """What types cannot say."""
    if not settings.base_dir.is_absolute():
        yield ConfigError("base_dir", f"expected an absolute path, got {str(settings.base_dir)!r}")
    for number, stack in enumerate(settings.stacks):
        if not stack.package_path.is_absolute():
            yield ConfigError(f"stacks[{number}].package_path", "expected an absolute path")
    names = [stack.name for stack in settings.stacks]
    for name in {name for name in names if names.count(name) > 1}:
        yield ConfigError("stacks", f"{name!r} stands there twice")
    try:
        pool = ipaddress.IPv4Network(settings.network.pool_network)
        if pool.prefixlen > 30:
            yield ConfigError("network.pool_network", "expected a network of at least four addresses (/30)")
    except ValueError as e:
        yield ConfigError("network.pool_network", f"expected an IPv4 network such as 10.254.0.0/16, got {e}")
    for key, words, kind in (
        ("network.allow_networks", settings.network.allow_networks, ipaddress.IPv4Network),
        ("network.dns_servers", settings.network.dns_servers, ipaddress.IPv4Address),
    ):
        for number, word in enumerate(words):
            try:
                kind(word)
            except ValueError as e:
                yield ConfigError(f"{key}[{number}]", f"{e}")
    if settings.instance.min_cpu_share_limit > settings.instance.max_cpu_share_limit:
        yield ConfigError("instance.min_cpu_share_limit", "is above instance.max_cpu_share_limit")
    if settings.local_ip is not None:
        try:
            ipaddress.IPv4Address(settings.local_ip)
        except ValueError:
            yield ConfigError("local_ip", f"expected an IPv4 address, got {settings.local_ip!r}")
