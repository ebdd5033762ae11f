"""The network of all containers of a host: links, addresses' rules, published ports. The acting half of rules.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from container.aio import Background, Log
from container.network import conntrack, rules
from container.network.firewall import Firewall, FirewallError
from container.network.firewall.nftables import Nftables
from container.network.link import GATEWAY_MAC, DeathWatch, Links, exists
from container.network.ports import HostPorts
from container.network.rules import Chain, Member, Policy, interface_of, make_egress
from container.network.watch import RulesetWatch
from container.plan import Ethernet
from container.pools import AddressLease
from container.spec import EgressRule, PortMapping, Protocol

_PROTOCOL_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17}


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    pool_network: str = "10.254.0.0/16"
    mtu: int = 1500
    dns_servers: tuple[str, ...] = ()
    allow_networks: tuple[str, ...] = ()
    allow_host_access: bool = False
    port_first: int = 0
    port_count: int = 0
    external_address: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A container's network, as its caller holds it."""

    link_id: str
    interface: str
    lease: AddressLease


@dataclass(frozen=True, slots=True)
class Restored:
    """A link of a former manager that is to be taken up again."""

    link_id: str
    lease: AddressLease
    egress: tuple[EgressRule, ...]
    ports: tuple[PortMapping, ...]


class Networks:
    """Made by :meth:`open`. What the kernel has is always made from ``_members``."""

    def __init__(self, settings: NetworkSettings, firewall: Firewall, links: Links, log: Log) -> None:
        self._settings = settings
        self._policy = Policy(
            settings.pool_network, settings.dns_servers, settings.allow_networks, settings.allow_host_access
        )
        self._firewall = firewall
        self._links = links
        self._log = log
        self._members: dict[str, Member] = {}
        self._chains: Counter[Chain] = Counter()
        self._ports = HostPorts.of_host(settings.port_first, settings.port_count)
        self._changing = asyncio.Lock()
        self._background = Background(log)
        loop = asyncio.get_running_loop()
        self._deaths = DeathWatch(loop)
        self._watch = RulesetWatch(loop, firewall.worker_id, self._on_foreign_change)
        self._restoring = False

    @classmethod
    async def open(cls, settings: NetworkSettings, log: Log) -> Networks:
        """Sets up forwarding and, where our tables are missing, their base. Raises FirewallError."""
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        networks = cls(settings, Nftables(), await Links.open(), log)
        # Tables of a former manager stay until `restore` replaces them in one transaction: its containers have traffic.
        try:
            await networks._firewall.apply(f"list chain inet {rules.TABLE} c_in\n")
        except FirewallError:
            await networks._firewall.apply(rules.base(networks._policy))
        return networks

    def plan_for(self, link_id: str, lease: AddressLease) -> Ethernet:
        return Ethernet(lease.container_ip, 30, lease.host_ip, GATEWAY_MAC, self._settings.mtu)

    async def attach(self, link_id: str, pid: int, lease: AddressLease, egress: Sequence[EgressRule]) -> Link:
        """The link and its rules. On an error neither is left."""
        interface = interface_of(link_id)
        await self._links.delete(interface) if exists(interface) else None
        member = Member(interface, link_id, lease, make_egress(egress, self._policy))
        try:
            await self._links.add(link_id, pid, lease, self._settings.mtu)
            async with self._changing:
                await self._firewall.apply(self._new_chains(member.egress.chains) + rules.add_member(member))
                self._members[link_id] = member
                self._chains.update(member.egress.chains)
        except BaseException:
            await self._links.delete(interface)
            raise
        return Link(link_id, interface, lease)

    def _new_chains(self, chains: Iterable[Chain]) -> str:
        return "".join(rules.add_chain(chain) for chain in dict.fromkeys(chains) if not self._chains[chain])

    def _drop_chains(self, chains: Iterable[Chain]) -> str:
        """Counts down, and the text that removes those without users."""
        text = ""
        for chain in chains:
            self._chains[chain] -= 1
            if not self._chains[chain]:
                del self._chains[chain]
                text += rules.delete_chain(chain)
        return text

    async def publish(self, link: Link, mapping: PortMapping) -> PortMapping:
        """Reserves the host's port and leads it inside. PortTaken, NoPorts, FirewallError."""
        resolved = self._ports.take(mapping)
        try:
            async with self._changing:
                member = self._members[link.link_id]
                await self._firewall.apply(rules.add_port(member, resolved))
                self._members[link.link_id] = replace(member, ports=(*member.ports, resolved))
        except BaseException:
            self._ports.give_back(resolved)
            raise
        return resolved

    async def set_egress(self, link: Link, egress: Sequence[EgressRule]) -> None:
        """Replaces all egress rules of a container in one transaction."""
        new = make_egress(egress, self._policy)
        async with self._changing:
            member = self._members[link.link_id]
            text = self._new_chains(new.chains)
            text += rules.delete_egress(member, member.egress) + rules.add_egress(member, new)
            self._chains.update(new.chains)
            dropped = self._drop_chains(member.egress.chains)
            try:
                await self._firewall.apply(text + dropped)
            except BaseException:
                self._chains.update(member.egress.chains)
                self._drop_chains(new.chains)
                raise
            self._members[link.link_id] = replace(member, egress=new)

    async def detach(self, link: Link) -> None:
        """Rules and ports back; the pair itself goes with its namespace (see :meth:`gone`). Idempotent."""
        async with self._changing:
            member = self._members.pop(link.link_id, None)
            if member is None:
                return
            text = rules.delete_member(member) + self._drop_chains(member.egress.chains)
            try:
                await self._firewall.apply(text)
            except FirewallError as e:
                # somebody flushed our tables a moment ago: make them from what should be
                self._log.warning("firewall_detach_failed_rebuilding", link=link.link_id, error=str(e))
                await self._rebuild()
        ports = tuple((_PROTOCOL_NUMBERS[one.protocol], one.host_port or 0) for one in member.ports)
        try:
            await asyncio.to_thread(conntrack.forget, member.lease.container_ip, ports)
        except OSError as e:
            self._log.warning("conntrack_not_flushed", link=link.link_id, error=str(e))
        for mapping in member.ports:
            self._ports.give_back(mapping)

    async def gone(self, link: Link) -> None:
        """Until the kernel has taken the pair back: only then may its /30 rest."""
        await self._deaths.gone(link.interface)

    async def restore(self, found: Sequence[Restored]) -> dict[str, Link]:
        """Takes up the links of a former manager and removes the rules of everything else, in one transaction."""
        async with self._changing:
            for one in found:
                egress = make_egress(one.egress, self._policy)
                self._members[one.link_id] = Member(
                    interface_of(one.link_id), one.link_id, one.lease, egress, one.ports
                )
                self._chains.update(egress.chains)
                for mapping in one.ports:
                    if not self._ports.claim(mapping):
                        self._log.warning(
                            "host_port_taken_meanwhile", port=mapping.host_port, link=one.link_id
                        )
            await self._rebuild()
        return {one.link_id: Link(one.link_id, interface_of(one.link_id), one.lease) for one in found}

    async def _rebuild(self) -> None:
        members = [member for member in self._members.values() if exists(member.interface)]
        chains = dict.fromkeys(chain for member in members for chain in member.egress.chains)
        text = rules.base(self._policy) + "".join(rules.add_chain(chain) for chain in chains)
        await self._firewall.apply(text + "".join(rules.add_member(member) for member in members))

    def _on_foreign_change(self, culprit: str) -> None:
        self._log.warning("firewall_changed_by_others_restoring", by=culprit, containers=len(self._members))
        if not self._restoring:
            self._restoring = True
            self._background.start(self._restore_rules(), name="firewall-restore")

    async def _restore_rules(self) -> None:
        async with self._changing:
            self._restoring = False
            await self._rebuild()
        self._log.info("firewall_restored", containers=len(self._members))

    async def close(self, *, remove_tables: bool = False) -> None:
        self._watch.close()
        await self._background.close(10.0)
        if remove_tables:
            with contextlib.suppress(FirewallError):
                await self._firewall.apply(rules.remove())
        self._deaths.close()
        self._ports.close()
        await self._firewall.close()
        await self._links.close()
