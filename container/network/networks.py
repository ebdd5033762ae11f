"""The network of all containers of a host: links, addresses' rules, published ports. The acting half of ruleset.py."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from container.aio import Background, Log, finish
from container.network import conntrack, rules
from container.network.firewall import Firewall, FirewallError
from container.network.firewall.nftables import Nftables
from container.network.forwarding import Forwarding
from container.network.link import GATEWAY_MAC, DeathWatch, Links, exists
from container.network.ports import HostPorts
from container.network.rules import Member, Policy, interface_of, make_egress
from container.network.ruleset import Ruleset
from container.network.watch import RulesetWatch
from container.plan import Ethernet
from container.pools import AddressLease, Pool
from container.spec import EgressRule, PortMapping, Protocol

T = TypeVar("T")
Change = Callable[[Ruleset], str]
_UDP: Final = 17
_RETRY_S: Final = 1.0
_NAMESPACE_ENDS_S: Final = 3.0  # the kernel ends hundreds of namespaces a second


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """``uplinks``: interfaces to the host's peers; none: where routes lead, and that of the address ``reached_at``.
    ``forwarding_file``: where it is written down which of them were opened for forwarding. ``port_rest_s``: so long a
    port that was given back is nobody's; ``port_rests``: further ones that are not to be given out yet.
    """

    pool_network: str = "10.254.0.0/16"
    mtu: int = 1500
    dns_servers: tuple[str, ...] = ()
    allow_networks: tuple[str, ...] = ()
    allow_host_access: bool = False
    publish_to_host_only: bool = False
    port_first: int = 0
    port_count: int = 0
    port_rest_s: float = 0.0
    port_rests: Callable[[int], bool] = lambda _: False
    uplinks: tuple[str, ...] = ()
    reached_at: str | None = None
    forwarding_file: Path | None = None


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
    """Made by :meth:`open`. What the kernel has is always made from ``_held``."""

    def __init__(
        self,
        settings: NetworkSettings,
        policy: Policy,
        firewall: Firewall,
        links: Links,
        ports: HostPorts,
        log: Log,
    ) -> None:
        self._policy = policy
        self._mtu = settings.mtu
        self._firewall = firewall
        self._links = links
        self._ports = ports
        self._log = log
        self._held = Ruleset(self._policy)
        self._waiting: list[tuple[Change, asyncio.Future[None]]] = []
        self._committing = False
        self._restoring = False
        self._background = Background(log)
        loop = asyncio.get_running_loop()
        self._deaths = DeathWatch(loop)
        self._watch = RulesetWatch(loop, firewall.author, self._on_foreign_change)
        self._forwarding = Forwarding(
            settings.uplinks,
            settings.reached_at,
            settings.forwarding_file,
            self._guard,
            log,
            self._background,
        )

    @classmethod
    async def open(cls, settings: NetworkSettings, log: Log) -> Networks:
        """Where our tables are missing: makes their base, and sets up forwarding. Raises FirewallError, NoPorts."""
        pool = str(ipaddress.IPv4Network(settings.pool_network, strict=False))
        policy = Policy(
            pool,
            settings.dns_servers,
            settings.allow_networks,
            settings.allow_host_access,
            settings.publish_to_host_only,
        )
        ports = HostPorts.of_host(
            settings.port_first, settings.port_count, rest_s=settings.port_rest_s, rests=settings.port_rests
        )
        networks = cls(settings, policy, Nftables(), await Links.open(), ports, log)
        try:
            await networks._ensure_tables()
        except BaseException:
            await networks.close()
            raise
        return networks

    async def _ensure_tables(self) -> None:
        """Those of a former manager stay until `restore` replaces them at once: its containers have traffic.

        They may be of another version and lack the guard, so forwarding is not touched before either.
        """
        try:
            await self._firewall.apply(f"list chain inet {rules.TABLE} c_in\n")
        except FirewallError:
            await self._firewall.apply(rules.base(self._policy))
            await self._forwarding.start()

    def plan_for(self, link_id: str, lease: AddressLease) -> Ethernet:
        return Ethernet(lease.container_ip, 30, lease.host_ip, GATEWAY_MAC, self._mtu)

    # What callers do. A caller that goes away leaves nothing half done.

    async def attach(self, link_id: str, pid: int, lease: AddressLease, egress: Sequence[EgressRule]) -> Link:
        """The link and its rules. On an error neither is left."""
        return await self._unbroken(self._attach(link_id, pid, lease, egress), f"attach-{link_id}")

    async def publish(self, link: Link, mapping: PortMapping) -> PortMapping:
        """Reserves the host's port and leads it inside. PortTaken, NoPorts, FirewallError."""
        return await self._unbroken(self._publish(link.link_id, mapping), f"publish-{link.link_id}")

    async def set_egress(self, link: Link, egress: Sequence[EgressRule]) -> None:
        """Replaces all egress rules of a container in one transaction."""
        new = make_egress(egress, self._policy)
        await self._change(lambda held: held.set_egress(link.link_id, new))

    async def detach(self, link: Link) -> None:
        """Rules and ports back; the pair itself goes with its namespace (see :meth:`gone`). Idempotent."""
        await self._unbroken(self._detach(link.link_id), f"detach-{link.link_id}")

    async def gone(self, link: Link) -> None:
        """Returns when the pair is gone: only then may its /30 rest.

        The pair goes with its network namespace, and a closed TCP connection whose peer acknowledges nothing keeps
        that namespace for minutes after the last process. Such a pair is deleted from the host's side.
        """
        try:
            async with asyncio.timeout(_NAMESPACE_ENDS_S):
                await self._deaths.gone(link.interface)
        except TimeoutError:
            await self._links.delete(link.interface)
            await self._deaths.gone(link.interface)

    async def restore(self, found: Sequence[Restored]) -> dict[str, Link]:
        """Takes up the links of a former manager and removes the rules of everything else, in one transaction."""
        members = [
            Member(
                interface_of(one.link_id),
                one.link_id,
                one.lease,
                make_egress(one.egress, self._policy),
                one.ports,
            )
            for one in found
        ]
        for member in members:
            for mapping in member.ports:
                if not self._ports.claim(mapping):
                    self._log.warning(
                        "host_port_taken_meanwhile", port=mapping.host_port, link=member.link_id
                    )

        opened = self._forwarding.remembered()

        def take_up(held: Ruleset) -> str:
            held.guard(opened)
            for member in members:
                held.add(member)
            return held.whole(_existing(held))

        await self._change(take_up)
        try:
            await self._forwarding.start()
        except FirewallError as e:  # they run already, and are better cut off for a while than given up
            self._log.warning("forwarding_not_set_retrying", error=str(e))
            self._forwarding.try_again()
        return {one.link_id: Link(one.link_id, interface_of(one.link_id), one.lease) for one in members}

    @property
    def port_pool(self) -> Pool[int]:
        return self._ports.pool

    def rest_ports(self, mappings: Iterable[PortMapping]) -> None:
        """They were of a former manager's container that is gone."""
        for mapping in mappings:
            self._ports.rest(mapping)

    # How it is done.

    async def _guard(self, uplinks: frozenset[str]) -> None:
        if uplinks != self._held.guarded:
            await self._change(lambda held: held.guard(uplinks))

    async def _unbroken(self, work: Coroutine[Any, Any, T], name: str) -> T:
        return await finish(self._background.start(work, name=name, watched=True))

    async def _attach(
        self, link_id: str, pid: int, lease: AddressLease, egress: Sequence[EgressRule]
    ) -> Link:
        interface = interface_of(link_id)
        member = Member(interface, link_id, lease, make_egress(egress, self._policy))
        try:
            await self._links.add(link_id, pid, lease, self._mtu)
            await self._change(lambda held: held.add(member))
        except BaseException:
            await self._links.delete(interface)
            raise
        return Link(link_id, interface, lease)

    async def _publish(self, link_id: str, mapping: PortMapping) -> PortMapping:
        resolved = self._ports.take(mapping)
        assert resolved.host_port is not None
        try:
            await self._change(lambda held: held.publish(link_id, resolved))
        except BaseException:
            self._ports.give_back(resolved)
            raise
        if resolved.protocol is Protocol.UDP:
            await self._forget(link_id, conntrack.forget_host_port, _UDP, resolved.host_port)
        return resolved

    async def _detach(self, link_id: str) -> None:
        member = self._held.find(link_id)
        if member is None:
            return
        await self._change(lambda held: held.remove(link_id))
        await self._forget(link_id, conntrack.forget_address, member.lease.container_ip)
        for mapping in member.ports:
            self._ports.give_back(mapping)

    async def _forget(self, link_id: str, what: Callable[..., None], *which: object) -> None:
        try:
            await asyncio.to_thread(what, *which)
        except OSError as e:
            self._log.warning("connections_not_forgotten", link=link_id, error=str(e))

    # Changes: all that wait go in one transaction (forty cost little more than one).

    async def _change(self, change: Change) -> None:
        """FirewallError: refused, and nothing of it holds. One whose caller goes away is made nevertheless."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, done))
        if not self._committing:
            self._committing = True
            self._background.start(self._commit_waiting(), name="firewall")
        await asyncio.shield(done)

    async def _commit_waiting(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._commit(batch)
        finally:
            self._committing = False

    async def _commit(self, batch: list[tuple[Change, asyncio.Future[None]]]) -> None:
        trial = self._held.copy()
        try:
            await self._firewall.apply("".join(change(trial) for change, _ in batch))
        except Exception as e:
            if len(batch) == 1:
                await self._commit_anew(*batch[0], because=e)
                return
            for one in batch:  # one of them is wrong, and only that one is to fail
                await self._commit([one])
            return
        self._held = trial
        for _, done in batch:
            done.set_result(None)

    async def _commit_anew(self, change: Change, done: asyncio.Future[None], because: Exception) -> None:
        """Perhaps the kernel has not what it should, since others have just flushed it: then everything anew is accepted."""
        trial = self._held.copy()
        try:
            change(trial)
            await self._make_anew(trial)
        except Exception:
            done.set_exception(because)
            return
        self._log.warning("firewall_was_not_as_left", error=str(because), containers=len(trial))
        self._held = trial
        done.set_result(None)

    async def _make_anew(self, held: Ruleset) -> None:
        """An interface may go at any time, and some kernels refuse a chain for one that is not there."""
        while True:
            there = _existing(held)
            try:
                return await self._firewall.apply(held.whole(there))
            except FirewallError:
                if there == _existing(held):
                    raise

    def _on_foreign_change(self, culprit: str) -> None:
        self._log.warning("firewall_changed_by_others_restoring", by=culprit, containers=len(self._held))
        if not self._restoring:
            self._restoring = True
            self._background.start(self._restore_rules(), name="firewall-restore")

    async def _restore_rules(self) -> None:
        """Until it is done: without our tables every container is cut off."""

        def anew(held: Ruleset) -> str:
            self._restoring = False  # what others change from here on is not in this text
            return held.whole(_existing(held))

        while True:
            try:
                await self._change(anew)
                break
            except Exception as e:  # whatever it was: given up, it would never be tried again
                self._log.warning("firewall_not_restored_retrying", error=repr(e), after_s=_RETRY_S)
                await asyncio.sleep(_RETRY_S)
        self._log.info("firewall_restored", containers=len(self._held))

    async def close(self, *, remove_tables: bool = False) -> None:
        self._watch.close()
        self._forwarding.stop_following()
        await self._background.close(10.0)
        if remove_tables:
            await self._forwarding.give_back()
            with contextlib.suppress(FirewallError):
                await self._firewall.apply(rules.remove())
        self._deaths.close()
        self._ports.close()
        await self._firewall.close()
        await self._links.close()


def _existing(held: Ruleset) -> frozenset[str]:
    return frozenset(interface for interface in held.interfaces if exists(interface))
