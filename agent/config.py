"""Reads the configuration file into one frozen value. Each setting is one line here: key, type, default, range.

config.yml documents every setting. Keys and sections are named as in the DEA and Warden, where those have the setting. All
errors of a file are reported at once, each with its key path and line, so that an operator needs one round to fix them.

The modules beside this one: config_file.py parses and converts, config_rules.py checks values against each other,
config_host.py checks what the file names on this host, config_original.py knows settings that only the DEA has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import config_file, config_host, config_original, config_rules
from agent.config_file import ConfigError
from container.defaults import CGROUP_PARENT, FIREWALL, POOL_NETWORK, TABLE, TABLE_PATTERN, FirewallName

Positive = Annotated[int, Meta(gt=0, le=1 << 40)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]  # at most a year; the bound also excludes `.inf`
Wait = Annotated[float, Meta(ge=0, le=31_536_000)]
Share = Annotated[float, Meta(gt=0, le=1)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Text = Annotated[str, Meta(min_length=1)]


class ConfigErrors(Exception):
    """All errors of a file, one a line: file, line, key path, message."""

    def __init__(self, path: Path, errors: tuple[ConfigError, ...]) -> None:
        super().__init__("\n".join(f"{path}:{one.line}  {one.key_path}: {one.message}" for one in errors))
        self.path = path
        self.errors = errors


class _Section(Struct, frozen=True):
    """It ignores unknown keys; `config_file.unknown_keys` reports them, with a suggestion for each."""


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
    memory_overcommit_factor: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    disk_mb: Positive | None = None
    disk_overcommit_factor: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    low_water_mb: Annotated[int, Meta(ge=0)] = 1024


class InstanceSettings(_Section, frozen=True):
    memory_to_cpu_share_ratio: Positive = 8
    max_cpu_share_limit: Positive = 256
    min_cpu_share_limit: Positive = 1
    disk_inode_limit: Positive = 200_000
    nproc_limit: Positive = 512
    output_limit_bytes: Positive = 10 << 20
    stop_grace_s: Wait = 10.0
    unregister_wait_s: Wait = 1.0
    drain_s: Wait = 0.1


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
    pool_network: Text = POOL_NETWORK
    firewall: FirewallName = FIREWALL
    firewall_table: Annotated[str, Meta(pattern=TABLE_PATTERN)] = TABLE
    release_delay: Wait = 5.0
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
    rest_s: Wait = 120.0


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
    min_rate_bytes_per_s: Annotated[int, Meta(ge=0)] = 10 << 10


class Settings(_Section, frozen=True):
    """The whole file. A field that is a section has the section's key as its name."""

    base_dir: Path
    index: Annotated[int, Meta(ge=0)] = 0
    cgroup_parent: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+$")] = CGROUP_PARENT
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


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """The result of reading a file.

    ``errors``: the file is refused. ``doubts``: values that contradict each other, or name something that this host lacks.
    `garrison config check` refuses them. The agent starts in spite of them: an updated agent that checks more than the former
    one must not leave its apps without an agent. ``notes``: settings without effect.
    """

    settings: Settings | None
    errors: tuple[ConfigError, ...]
    doubts: tuple[ConfigError, ...] = ()
    notes: tuple[ConfigError, ...] = ()


def load(path: Path) -> Settings:
    """The settings of a file. ConfigErrors: the file has errors; it holds all of them. OSError: the file cannot be read."""
    found = read(path)
    if found.errors or found.settings is None:
        raise ConfigErrors(path, found.errors)
    return found.settings


def check(path: Path) -> tuple[ConfigError, ...]:
    """The errors and doubts of a file, without a look at this host. OSError: the file cannot be read."""
    found = read(path)
    return found.errors + found.doubts


def read(path: Path, *, on_this_host: bool = False) -> ReadConfig:
    """Read and check a file. ``on_this_host``: also look for what it names on this host. OSError: the file cannot be read."""
    try:
        text = config_file.parse(path.read_text())
    except UnicodeDecodeError:
        return ReadConfig(None, (ConfigError("", "expected YAML in UTF-8, got other bytes"),))
    except config_file.UnreadableConfig as e:
        return ReadConfig(None, (ConfigError("", str(e), e.line),))
    settings, wrong = config_file.convert(text.values, Settings)
    unknown = config_file.unknown_keys(Settings, text.values, config_original.KNOWN)
    errors = [*unknown, *config_original.moved(text.values), *wrong]
    doubts: list[ConfigError] = [*text.doubled]
    if settings is not None:
        errors += config_rules.sensible(settings)
        doubts += config_rules.doubtful(settings)
        doubts += config_host.lacking(settings) if on_this_host and not errors else ()

    def placed(found: Iterable[ConfigError]) -> tuple[ConfigError, ...]:
        return tuple(sorted(map(text.place, found), key=lambda error: error.line))

    notes = config_original.without_effect(text.values)
    return ReadConfig(settings, placed(errors), placed(doubts), placed(notes))
