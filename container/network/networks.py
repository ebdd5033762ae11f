"""The network of all containers of a host: their links, what these may reach, and the ports that lead to them.

Each operation is links, rules and ports together, and on an error none of them is left. `rules.py` changes the firewall,
`link.py` makes links, `ports.py` reserves ports; this file says in which order.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, TypeVar

from container.aio import Background, Log, finish
from container.network import conntrack
from container.network.firewall import Firewall, FirewallError
from container.network.firewall.backends import back_end
from container.network.follower import LinkFollower
from container.network.forwarding import Forwarding
from container.network.link import GATEWAY_MAC, PREFIX_LENGTH, Link, Links, LinkWatch, Restored, mac_of
from container.network.options import NetworkOptions
from container.network.permitted import Flow, is_permitted
from container.network.policy import Egress, LinkRules, Policy, Ruleset, interface_of, make_egress
from container.network.ports import HostPorts
from container.network.rules import HeldRules
from container.network.shaping import LinkUse, Shaper, ShapingError
from container.plan import Ethernet
from container.pools import AddressLease, LeasePool
from container.spec import Bandwidth, EgressRule, PortMapping, Protocol

T = TypeVar("T")
_TCP, _UDP = 6, 17
_NAMESPACE_ENDS_S: Final = 3.0  # the kernel ends hundreds of namespaces a second


class Networks:
    """The links of all containers, and their firewall. Made by :meth:`open`, ended by :meth:`close`."""

    def __init__(
        self,
        settings: NetworkOptions,
        policy: Policy,
        firewall: Firewall,
        links: Links,
        ports: HostPorts,
        log: Log,
    ) -> None:
        self._policy = policy
        self._mtu = settings.mtu
        self._shaper = Shaper(settings.mtu, log)
        self._firewall = firewall
        self._links = links
        self._ports = ports
        self._log = log
        self._background = Background(log)
        self._rules = HeldRules(Ruleset(policy), firewall, self._background, log)
        loop = asyncio.get_running_loop()
        self.follower = LinkFollower(links, self._background, log)
        self._watch = LinkWatch(loop, self.follower.on_report)
        self._forwarding = Forwarding(
            settings.uplinks,
            settings.reached_at,
            settings.forwarding_file,
            self._guard,
            log,
            self._background,
            settings.other_forwarding,
        )

    @classmethod
    async def open(cls, settings: NetworkOptions, log: Log, firewall: Firewall | None = None) -> Networks:
        """Where no firewall of ours stands: makes it, and sets up forwarding.

        ``firewall``: a back end of the caller's instead of the one that the settings name. FirewallError; NoPorts: too
        few ports; ValueError: a pool network that is none.
        """
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
        firewall = firewall or back_end(settings.firewall, settings.table)
        links = await Links.open()
        try:
            networks = cls(settings, policy, firewall, links, ports, log)
        except BaseException:
            await links.close()
            raise
        try:
            await networks._ensure_firewall()
        except BaseException:
            await networks.close()
            raise
        return networks

    async def _ensure_firewall(self) -> None:
        """That of a former manager stays until `restore` replaces it in one step: its containers have traffic.

        It may be of another version and lack the guard of uplinks, so forwarding is not touched before either.
        """
        if await self._firewall.ensure(self._policy):
            await self._forwarding.start()

    def plan_for(self, link_id: str, lease: AddressLease) -> Ethernet:
        """What wshd sets up at the container's end of a link."""
        gateway = mac_of(link_id, "host") if self._firewall.sees_true_gateway else GATEWAY_MAC
        return Ethernet(lease.container_ip, PREFIX_LENGTH, lease.host_ip, gateway, self._mtu)

    # What callers ask for. A caller that is cancelled leaves nothing half done.

    async def attach(
        self,
        link_id: str,
        pid: int,
        lease: AddressLease,
        egress: Sequence[EgressRule],
        bandwidth: Bandwidth | None = None,
    ) -> Link:
        """Makes a link to the network namespace of ``pid``, and its rules. On an error neither is left.

        SpecError: a burst below one packet; OSError, ShapingError: the kernel refused the link or its limit; FirewallError:
        it refused the rules.
        """
        return await self._unbroken(self._attach(link_id, pid, lease, egress, bandwidth), f"attach-{link_id}")

    async def up(self, link: Link) -> None:
        """Returns when the link passes packets, after its far end was set up. OSError: it does not."""
        await self._watch.up(link.interface)

    async def publish(self, link: Link, mapping: PortMapping) -> PortMapping:
        """Reserves a port of the host and leads it to the container. Returns the mapping with both ports filled in.

        PortTaken, NoPorts, FirewallError.
        """
        return await self._unbroken(self._publish(link.link_id, mapping), f"publish-{link.link_id}")

    async def set_egress(self, link: Link, egress: Sequence[EgressRule]) -> None:
        """Replaces all egress rules of a container in one transaction. Connections that they permit no more end. FirewallError."""
        new = make_egress(egress, self._policy)
        await self._unbroken(self._set_egress(link, new), f"egress-{link.link_id}")

    async def unpublish(self, link: Link, mapping: PortMapping) -> None:
        """Ends a published port, and the connections that came by it. Idempotent. FirewallError: it is published as before."""
        await self._unbroken(self._unpublish(link.link_id, mapping), f"unpublish-{link.link_id}")

    async def limit(self, link: Link, bandwidth: Bandwidth | None, former: Bandwidth | None) -> None:
        """Limits a link both ways, None: no more. After an error it is limited as before, by ``former``.

        SpecError: a burst below one packet; ShapingError, OSError, FirewallError: the kernel refused.
        """
        self._check_shaping(bandwidth)
        link_id = link.link_id
        work = self._shaper.limit(
            link_id,
            bandwidth,
            former,
            lambda: self._rules.held.find(link_id),
            lambda shaped, anew: self._rules.change(lambda held: held.shape(link_id, shaped), anew=anew),
        )
        await self._unbroken(work, f"limit-{link_id}")

    async def measure(self, link: Link, asked: Bandwidth | None) -> LinkUse:
        """What has passed through a link, and its limits as the kernel has them. OSError."""
        return await self._shaper.measure(link.link_id, asked)

    async def detach(self, link: Link) -> None:
        """Removes the rules and gives back the ports. The pair itself goes with its namespace: :meth:`gone`. Idempotent."""
        await self._unbroken(self._detach(link.link_id), f"detach-{link.link_id}")

    async def gone(self, link: Link) -> None:
        """Returns when the pair is gone. Only then may the rest of its /30 begin.

        The pair goes with its network namespace, and a closed TCP connection whose peer acknowledges nothing keeps
        that namespace for minutes after the last process. Such a pair is deleted from the host's side.
        """
        try:
            async with asyncio.timeout(_NAMESPACE_ENDS_S):
                await self._watch.gone(link.interface)
        except TimeoutError:
            await self._links.delete(link.interface)
            await self._watch.gone(link.interface)

    async def restore(self, found: Sequence[Restored]) -> dict[str, Link]:
        """Takes up the links of a former manager, and removes the rules of everything else, in one transaction.

        FirewallError.
        """
        links = [
            LinkRules(
                interface_of(one.link_id),
                one.link_id,
                one.lease,
                make_egress(one.egress, self._policy),
                one.ports,
                one.bandwidth is not None,
            )
            for one in found
        ]
        for link in links:
            for mapping in link.ports:
                if not self._ports.claim(mapping):
                    self._log.warning("host_port_taken_meanwhile", port=mapping.host_port, link=link.link_id)

        limited = {one.link_id: one.bandwidth for one in found if one.bandwidth is not None}
        await self._shaper.restore(limited)
        opened = self._forwarding.remembered()
        await self._rules.change(lambda held: held.guard(opened).add(*links), anew=True)
        await self._shaper.sweep(frozenset(link.link_id for link in links) - limited.keys())
        try:
            await self._forwarding.start()
        except FirewallError as e:  # the containers run: better cut off for a while than given up
            self._log.warning("forwarding_not_set_retrying", error=str(e))
            self._forwarding.try_again()
        return {link.link_id: Link(link.link_id, link.interface, link.lease) for link in links}

    @property
    def port_pool(self) -> LeasePool[int]:
        """The host's ports, whose order of use outlives the manager (rotation.py)."""
        return self._ports.pool

    def rest_ports(self, mappings: Iterable[PortMapping]) -> None:
        """Ports of a former manager's container that is gone: their rest begins."""
        for mapping in mappings:
            self._ports.rest(mapping)

    # How these are done.

    async def _guard(self, uplinks: frozenset[str]) -> None:
        if uplinks != self._rules.held.guarded:
            await self._rules.change(lambda held: held.guard(uplinks))

    async def _unbroken(self, work: Coroutine[Any, Any, T], name: str) -> T:
        return await finish(self._background.start(work, name=name, watched=True))

    async def _attach(
        self,
        link_id: str,
        pid: int,
        lease: AddressLease,
        egress: Sequence[EgressRule],
        bandwidth: Bandwidth | None,
    ) -> Link:
        self._check_shaping(bandwidth)
        interface, shaped = interface_of(link_id), bandwidth is not None
        rules = LinkRules(interface, link_id, lease, make_egress(egress, self._policy), shaped=shaped)
        try:
            await self._links.add(link_id, pid, lease, self._mtu, arp=not self._firewall.sees_true_gateway)
            await self._shaper.begin(link_id, bandwidth)
            await self._rules.change(lambda held: held.add(rules))
        except BaseException:
            await self._links.delete(interface)
            await self._shaper.remove(link_id)
            raise
        return Link(link_id, interface, lease)

    def _check_shaping(self, bandwidth: Bandwidth | None) -> None:
        if bandwidth is not None and not self._firewall.can_shape:
            raise ShapingError("bandwidth: not offered with the iptables back end; use nftables")

    async def _publish(self, link_id: str, mapping: PortMapping) -> PortMapping:
        resolved = self._ports.take(mapping)
        assert resolved.host_port is not None
        try:
            await self._rules.change(lambda held: held.publish(link_id, resolved))
        except BaseException:
            self._ports.give_back(resolved)
            raise
        if resolved.protocol is Protocol.UDP:
            await self._forget(link_id, conntrack.forget_host_port, _UDP, resolved.host_port)
        return resolved

    async def _unpublish(self, link_id: str, mapping: PortMapping) -> None:
        assert mapping.host_port is not None
        await self._rules.change(lambda held: held.unpublish(link_id, mapping))
        number = _UDP if mapping.protocol is Protocol.UDP else _TCP
        await self._forget(link_id, conntrack.forget_host_port, number, mapping.host_port)
        self._ports.give_back(mapping)

    async def _set_egress(self, link: Link, new: Egress) -> None:
        former = self._rules.held.find(link.link_id)
        await self._rules.change(lambda held: held.set_egress(link.link_id, new))
        if former is None or (
            set(former.egress.outer) <= set(new.outer) and set(former.egress.inner) <= set(new.inner)
        ):
            return

        def permitted(flow: Flow) -> bool:
            return is_permitted(flow, new, self._policy, conntrack.is_own)

        await self._forget(link.link_id, conntrack.forget_refused, link.lease.container_ip, permitted)

    async def _detach(self, link_id: str) -> None:
        rules = self._rules.held.find(link_id)
        if rules is not None:
            await self._rules.change(lambda held: held.remove(link_id))
            await self._forget(link_id, conntrack.forget_address, rules.lease.container_ip)
            for mapping in rules.ports:
                self._ports.give_back(mapping)
        await self._shaper.remove(link_id)

    async def _forget(self, link_id: str, what: Callable[..., None], *which: object) -> None:
        try:
            await asyncio.to_thread(what, *which)
        except OSError as e:
            self._log.warning("connections_not_forgotten", link=link_id, error=str(e))

    async def close(self, *, remove_tables: bool = False) -> None:
        """Gives back sockets, threads and reserved ports. The links stay.

        ``remove_tables``: the firewall goes too, and forwarding is closed again; only when no container is left.
        """
        self._rules.stop_watching()
        self._forwarding.stop_following()
        await self._background.close(10.0)
        if remove_tables:
            await self._forwarding.give_back()
            with contextlib.suppress(FirewallError):
                await self._firewall.remove()
        self._watch.close()
        self._ports.close()
        await self._firewall.close()
        await self._links.close()
