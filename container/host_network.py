"""The depot's part of the host's network: what it claims of it, and how it is opened."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from container.aio import Log
from container.claims import Claims, HostClaim
from container.host import HostUnfit
from container.network import Networks
from container.network.firewall import FirewallError
from container.network.firewall.backends import AUTO, DEFAULT, back_end, chosen, foreign_drops
from container.network.forwarding import here
from container.network.ports import NoPorts, pool_of_host
from container.pools import IDS_PER_CONTAINER
from container.settings import DepotSettings, beside, network_settings

_TABLE: Final = re.compile(r"[a-z][a-z0-9_]{0,23}")


def claim_of(settings: DepotSettings) -> HostClaim:
    """What a depot of these settings has of this network namespace. HostUnfit: too few ports. ValueError: the table's name."""
    if not _TABLE.fullmatch(settings.table):
        raise ValueError(f"table: expected 1 to 24 of [a-z0-9_], a letter first, got {settings.table!r}")
    try:
        ports = pool_of_host(settings.port_first, settings.port_count)
    except NoPorts as e:
        raise HostUnfit(f"network: {e}") from e
    boot, netns = here()
    return HostClaim(
        depot_dir=os.path.realpath(settings.depot_dir),
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
    left_tables: Iterable[str],
    log: Log,
) -> Networks:
    """``left_tables``: of dead depots, which are removed. HostUnfit: the host cannot have the network."""

    def other_forwarding() -> list[Path]:
        return [Path(other.forwarding_file) for other in claims.others()]

    try:
        for table in left_tables:
            firewall = back_end(settings.firewall, table)
            await firewall.remove()
            await firewall.close()
            log.info("firewall_tables_of_a_dead_depot_removed", table=table)
        options = network_settings(settings, dns_servers, port_rests, other_forwarding)
        if options.firewall == AUTO:
            options = replace(options, firewall=chosen())
            why = "nftables can be used" if options.firewall == DEFAULT else "nftables cannot be used"
            log.info("firewall_back_end_chosen", name=options.firewall, why=why)
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
