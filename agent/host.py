"""Turns the settings into what the agent needs on this host: its directories, its address, the settings of the depot."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from agent import probe
from agent.config import Settings
from agent.droplets.transfer import Transfers
from agent.logs import Log
from container import DepotSettings, HostUnfit

DIRECTORIES = (
    "db",
    "tmp",
    "staging",
    "crashes",
    "layers",
    "trash",
    "templates",
    "admin_buildpacks",
    "outbox",
)


def make_directories(base_dir: Path) -> None:
    for name in DIRECTORIES:
        directory = base_dir / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)  # droplets and packages hold what only their app should read


@contextlib.contextmanager
def told_as_unfit(base_dir: Path) -> Iterator[None]:
    """Make the agent's directories, then run the block, which is the agent's set-up.

    HostUnfit: base_dir cannot be written, or the block raised an OSError; it names the path and the reason.
    """
    try:
        base_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.write(base_dir)
    except OSError as e:
        raise HostUnfit(f"base_dir {base_dir}: cannot be written: {e.strerror}") from e
    try:
        make_directories(base_dir)
        yield
    except OSError as e:
        raise HostUnfit(f"{e.filename or base_dir}: {e.strerror or e}") from e


LOOPBACK = "127.0.0.1"


def local_address(configured: str | None, log: Log) -> str:
    """The address at which peers reach this host: the configured one, else the source address of the default route.

    Without a default route it is 127.0.0.1, at which routers on other hosts do not reach the apps; that is logged. Connecting a
    UDP socket only makes the kernel choose a route; it sends no packet.
    """
    if configured is not None:
        return configured
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("1.2.3.4", 9))
        except OSError:
            log.warning("local_ip_is_loopback", ip=LOOPBACK, why="no default route", remedy="set local_ip")
            return LOOPBACK
        return str(probe.getsockname()[0])


def depot_settings(settings: Settings) -> DepotSettings:
    base, network = settings.base_dir, settings.network
    return DepotSettings(
        depot_dir=base / "depot",
        templates_dir=base / "templates",
        cgroup_parent=settings.cgroup_parent,
        firewall=network.firewall,
        table=network.firewall_table,
        pool_network=network.pool_network,
        release_delay_s=network.release_delay,
        mtu=network.mtu,
        dns_servers=network.dns_servers,
        dns_search=network.dns_search,
        dns_options=network.dns_options,
        allow_networks=network.allow_networks,
        allow_host_access=network.allow_host_access,
        publish_to_host_only=network.publish_ports_to == "host",
        uplinks=network.uplinks,
        reached_at=settings.local_ip,
        port_first=settings.port.pool_start_port or 0,
        port_count=settings.port.pool_size or 0,
        uid_first=settings.user.pool_start_uid,
        uid_count=settings.user.pool_size,
    )


def transfers_for(settings: Settings) -> Transfers:
    downloads = settings.downloads
    return Transfers(
        downloads.concurrent,
        stall_s=downloads.stall_s,
        min_rate_bytes_per_s=downloads.min_rate_bytes_per_s,
    )
