"""The depot's part of the host's network: what it claims of it, and how it is opened."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from container.aio import Log
from container.claims import Claims, HostClaim, Tables
from container.defaults import TABLE_PATTERN
from container.host import HostUnfit
from container.network import Networks
from container.network.firewall import FirewallError
from container.network.firewall.backends import back_end, foreign_drops, meant
from container.network.forwarding import here
from container.network.ports import NoPorts, pool_of_host
from container.pools import IDS_PER_CONTAINER
from container.settings import DepotSettings, beside, network_settings


def claim(settings: DepotSettings, log: Log) -> tuple[DepotSettings, Claims, list[Tables]]:
    """Claims what the depot is to have. Returns the settings with the back end that they mean on this host, and what
    `Claims.enter` returns. HostUnfit, DepotBusy, ValueError, OSError: nothing is claimed.
    """
    try:
        name, why = meant(settings.firewall)
    except FirewallError as e:
        raise HostUnfit(f"network: {e}") from e
    if why:
        log.info("firewall_back_end_chosen", name=name, why=why)
    settings = replace(settings, firewall=name)
    claims = Claims(claim_of(settings))
    return settings, claims, claims.enter()


def claim_of(settings: DepotSettings) -> HostClaim:
    """What a depot of these settings has of this network namespace. HostUnfit: too few ports. ValueError: the table's name."""
    if not re.match(TABLE_PATTERN, settings.table):
        raise ValueError(f"table: expected {TABLE_PATTERN}, got {settings.table!r}")
    try:
        ports = pool_of_host(settings.port_first, settings.port_count)
    except NoPorts as e:
        raise HostUnfit(f"network: {e}") from e
    boot, netns = here()
    return HostClaim(
        depot_dir=os.path.realpath(settings.depot_dir),
        firewall=settings.firewall,
        table=settings.table,
        cgroup_parent=settings.cgroup_parent,
        pool_network=str(ipaddress.IPv4Network(settings.pool_network, strict=False)),
        ports=(ports.start, ports.stop - 1),
        ids=(settings.uid_first, settings.uid_first + settings.uid_count * IDS_PER_CONTAINER - 1),
        forwarding_file=str(beside(settings.depot_dir, "forwarding").absolute()),
        boot=boot,
        netns=netns,
        pid=os.getpid(),
    )


async def open_networks(
    settings: DepotSettings,
    dns_servers: tuple[str, ...],
    port_rests: Callable[[int], bool],
    claims: Claims,
    left: Iterable[Tables],
    log: Log,
) -> Networks:
    """``left``: firewall tables that are in the way; they are removed. HostUnfit: the host cannot have the network."""

    def other_forwarding() -> list[Path]:
        return [Path(other.forwarding_file) for other in claims.others()]

    try:
        for name, table in left:
            firewall = back_end(name, table)
            await firewall.remove()
            await firewall.close()
            log.info("firewall_tables_in_the_way_removed", back_end=name, table=table)
        options = network_settings(settings, dns_servers, port_rests, other_forwarding)
        networks = await Networks.open(options, log)
    except (FirewallError, NoPorts) as e:
        raise HostUnfit(f"network: {e}") from e
    await _warn_of_others(settings, claims, log)
    return networks


async def _warn_of_others(settings: DepotSettings, claims: Claims, log: Log) -> None:
    """Logs other firewalls that would swallow the traffic of containers. A list that cannot be read is no reason not to start."""
    own = {settings.table, *(other.table for other in claims.others())}
    try:
        drops = await asyncio.to_thread(foreign_drops, own)
    except FirewallError as e:
        log.warning("firewalls_of_others_not_read", error=str(e))
        return
    for drop in drops:
        log.warning(
            "firewall_of_others_drops_containers", chain=drop.chain, why=drop.why, add=" ; ".join(drop.add)
        )
