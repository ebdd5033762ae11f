"""The network of all containers of a host: their links, what these may reach, and the ports that lead to them.

Invariant: ``_held`` is the ruleset that the kernel accepted last. A change computes a new ruleset from it, asks the
firewall to commit the difference, and only then puts the new one in its place. So there is nothing to undo after a
refusal, and everything can be written anew at any time: after a restart, and after others flushed the firewall.

Changes that arrive while a transaction runs wait and go together in the next one; forty cost little more than one. When
the kernel refuses a batch, each change of it is tried alone, so that only the wrong one fails. When it refuses a single
change, everything is written anew with that change in it: the kernel may not hold what it should, because somebody has
flushed it a moment ago (docs/network.md, "When others change the firewall").
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from container.aio import Background, Log, finish
from container.network import conntrack
from container.network.firewall import Firewall, FirewallError
from container.network.firewall.backends import back_end
from container.network.follower import LinkFollower
from container.network.forwarding import Forwarding
from container.network.link import GATEWAY_MAC, PREFIX_LENGTH, Link, Links, LinkWatch, Restored, exists
from container.network.options import NetworkOptions
from container.network.policy import LinkRules, Policy, Ruleset, interface_of, make_egress
from container.network.ports import HostPorts
from container.network.shaping import LinkUse, Shaper
from container.plan import Ethernet
from container.pools import AddressLease, LeasePool
from container.spec import Bandwidth, EgressRule, PortMapping, Protocol

T = TypeVar("T")
Change = Callable[[Ruleset], Ruleset]
_UDP: Final = 17
_RETRY_S: Final = 1.0
_NAMESPACE_ENDS_S: Final = 3.0  # the kernel ends hundreds of namespaces a second


@dataclass(slots=True)
class _Waiting:
    """A change that waits for its transaction. ``anew``: everything is to be written anew with it."""

    change: Change
    anew: bool
    done: asyncio.Future[None]


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
        self._held = Ruleset(policy)
        self._waiting: list[_Waiting] = []
        self._committing = False
        self._restoring = False
        self._background = Background(log)
        loop = asyncio.get_running_loop()
        self.follower = LinkFollower(links, self._background, log)
        self._watch = LinkWatch(loop, self.follower.on_report)
        self._stop_watching = firewall.foreign_changes(self._on_foreign_change)
        self._forwarding = Forwarding(
            settings.uplinks,
            settings.reached_at,
            settings.forwarding_file,
            self._guard,
            log,
            self._background,
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
        firewall = firewall or back_end(settings.firewall)
        networks = cls(settings, policy, firewall, await Links.open(), ports, log)
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
        return Ethernet(lease.container_ip, PREFIX_LENGTH, lease.host_ip, GATEWAY_MAC, self._mtu)

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
        """Replaces all egress rules of a container in one transaction. FirewallError."""
        new = make_egress(egress, self._policy)
        await self._change(lambda held: held.set_egress(link.link_id, new))

    async def limit(self, link: Link, bandwidth: Bandwidth | None, former: Bandwidth | None) -> None:
        """Limits a link both ways, None: no more. After an error it is limited as before, by ``former``.

        SpecError: a burst below one packet; ShapingError, OSError, FirewallError: the kernel refused.
        """
        link_id = link.link_id
        work = self._shaper.limit(
            link_id,
            bandwidth,
            former,
            lambda: self._held.find(link_id),
            lambda shaped, anew: self._change(lambda held: held.shape(link_id, shaped), anew=anew),
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
        await self._change(lambda held: held.guard(opened).add(*links), anew=True)
        await self._shaper.sweep(frozenset(limited))
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
        if uplinks != self._held.guarded:
            await self._change(lambda held: held.guard(uplinks))

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
        interface, shaped = interface_of(link_id), bandwidth is not None
        rules = LinkRules(interface, link_id, lease, make_egress(egress, self._policy), shaped=shaped)
        try:
            await self._links.add(link_id, pid, lease, self._mtu)
            await self._shaper.begin(link_id, bandwidth)
            await self._change(lambda held: held.add(rules))
        except BaseException:
            await self._links.delete(interface)
            await self._shaper.remove(link_id)
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
        rules = self._held.find(link_id)
        if rules is not None:
            await self._change(lambda held: held.remove(link_id))
            await self._forget(link_id, conntrack.forget_address, rules.lease.container_ip)
            for mapping in rules.ports:
                self._ports.give_back(mapping)
        await self._shaper.remove(link_id)

    async def _forget(self, link_id: str, what: Callable[..., None], *which: object) -> None:
        try:
            await asyncio.to_thread(what, *which)
        except OSError as e:
            self._log.warning("connections_not_forgotten", link=link_id, error=str(e))

    # Changes of the firewall.

    async def _change(self, change: Change, *, anew: bool = False) -> None:
        """Returns when the kernel has accepted the change; also one whose caller is cancelled is made.

        ``anew``: everything is written anew. FirewallError: refused, and nothing of the change holds.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(change, anew, done))
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

    async def _commit(self, batch: list[_Waiting]) -> None:
        try:
            held = self._held
            for one in batch:
                held = one.change(held)
            if any(one.anew for one in batch):
                await self._make_anew(held)
            else:
                await self._firewall.commit(self._held, held)
        except Exception as e:
            if len(batch) == 1:
                await self._commit_anew(batch[0], because=e)
                return
            for one in batch:  # one of them is wrong, and only that one is to fail
                await self._commit([one])
            return
        self._held = held
        for one in batch:
            one.done.set_result(None)

    async def _commit_anew(self, one: _Waiting, because: Exception) -> None:
        """Perhaps the kernel does not hold ``_held``, because others have just flushed it. Then everything anew is accepted."""
        try:
            held = one.change(self._held)
            await self._make_anew(held)
        except Exception:
            one.done.set_exception(because)
            return
        self._log.warning("firewall_was_not_as_left", error=str(because), containers=len(held))
        self._held = held
        one.done.set_result(None)

    async def _make_anew(self, held: Ruleset) -> None:
        """Tried again when an interface has gone meanwhile: some kernels refuse rules for one that does not exist."""
        while True:
            interfaces = _existing(held)
            try:
                return await self._firewall.replace(held, interfaces)
            except FirewallError:
                if interfaces == _existing(held):
                    raise

    def _on_foreign_change(self, culprit: str) -> None:
        self._log.warning("firewall_changed_by_others_restoring", by=culprit, containers=len(self._held))
        if not self._restoring:
            self._restoring = True
            self._background.start(self._restore_rules(), name="firewall-restore")

    async def _restore_rules(self) -> None:
        """Until it is done: without our rules every container is cut off."""

        def unchanged(held: Ruleset) -> Ruleset:
            self._restoring = False  # this transaction does not undo what others change from here on
            return held

        while True:
            try:
                await self._change(unchanged, anew=True)
                break
            except Exception as e:  # whatever it was: given up, it would never be tried again
                self._log.warning("firewall_not_restored_retrying", error=repr(e), after_s=_RETRY_S)
                await asyncio.sleep(_RETRY_S)
        self._log.info("firewall_restored", containers=len(self._held))

    async def close(self, *, remove_tables: bool = False) -> None:
        """Gives back sockets, threads and reserved ports. The links stay.

        ``remove_tables``: the firewall goes too, and forwarding is closed again; only when no container is left.
        """
        self._stop_watching()
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


def _existing(held: Ruleset) -> frozenset[str]:
    return frozenset(interface for interface in held.interfaces if exists(interface))
