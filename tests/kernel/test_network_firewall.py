"""The contract of firewall back ends: `Networks` on nftables, and on one in memory.

Covers batches, refusals, foreign changes and restarts. What a container reaches under the rules is in test_network_contract.py.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
import testhost
from depot_kit import until
from firewall_in_memory import InMemoryFirewall
from netns_kit import Namespace
from network_kit import BACK_ENDS, EVERYWHERE, Told, forget_empty_tables, tcp

from container.defaults import TABLE
from container.network import FirewallError, Link, NetworkOptions, Networks, Restored
from container.network.firewall import Firewall
from container.network.firewall.backends import back_end
from container.network.policy import Ruleset
from container.pools import AddressLease

pytestmark = pytest.mark.kernel


def ports_of_nftables() -> set[int]:
    listed = testhost.run("nft", "list", "map", "inet", "garrison", "m_port")
    return {int(port) for port in re.findall(r"tcp \. (\d+) :", listed)}


def ports_of_iptables(variant: str) -> set[int]:
    saved = testhost.run(f"iptables-{variant}-save", "-t", "nat")
    return {int(port) for port in re.findall(r"-A garrison-ports -p tcp .*--dport (\d+) ", saved)}


def flush_iptables(variant: str) -> None:
    for verb in ("-F", "-X"):
        for table in ("nat", "filter", "mangle"):
            testhost.run(f"iptables-{variant}", "-w", "10", "-t", table, verb)


@dataclass
class Place:
    """A back end, how to open a manager with it, what it has published, and how somebody else flushes it."""

    make: Callable[[], Firewall]
    ports: Callable[[], set[int]]
    flush: Callable[[], object]
    options: NetworkOptions
    told: Told

    async def open(self) -> Networks:
        return await Networks.open(self.options, self.told, self.make())


@pytest.fixture(params=[*BACK_ENDS, "in memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    options, name = NetworkOptions(forwarding_file=tmp_path / "forwarding"), request.param
    if name == "in memory":
        memory = InMemoryFirewall()
        yield Place(lambda: memory, lambda: memory.host_ports, memory.flush, options, Told())
        return
    ports, flush = ports_of_nftables, lambda: testhost.run("nft", "flush", "ruleset")
    if name != "nftables":
        variant = name.removeprefix("iptables-")
        ports, flush = partial(ports_of_iptables, variant), partial(flush_iptables, variant)  # type: ignore[assignment]
    yield Place(lambda: back_end(name, TABLE), ports, flush, options, Told())
    forget_empty_tables()


@dataclass
class Scene:
    place: Place
    networks: Networks
    spaces: dict[str, Namespace]

    async def link(self, number: int) -> Link:
        """A link into a namespace of its own, which a thread of this process keeps alive."""
        space = Namespace.new()
        link_id = f"{number:011}"
        self.spaces[link_id] = space
        lease = AddressLease(f"10.254.{number}.0/30", f"10.254.{number}.1", f"10.254.{number}.2")
        with space.inhabited() as pid:
            return await self.networks.attach(link_id, pid, lease, (EVERYWHERE,))

    async def end(self, link: Link) -> None:
        await self.networks.detach(link)
        self.spaces.pop(link.link_id).close()
        await self.networks.gone(link)


@pytest_asyncio.fixture
async def scene(place: Place) -> AsyncIterator[Scene]:
    scene = Scene(place, await place.open(), {})
    yield scene
    for space in scene.spaces.values():
        space.close()
    await scene.networks.close(remove_tables=True)


async def test_a_port_is_published_and_given_back(scene: Scene) -> None:
    """It is there while the link is."""
    link = await scene.link(1)
    await scene.networks.publish(link, tcp(7000))
    assert scene.place.ports() == {7000}

    await scene.end(link)
    assert scene.place.ports() == set()


async def test_a_refused_change_fails_alone(scene: Scene) -> None:
    """Two of the batch are wrong; the third holds."""
    first, second = await scene.link(1), await scene.link(2)
    await scene.networks.publish(first, tcp(7000))

    def twice(held: Ruleset) -> Ruleset:
        return held.publish(second.link_id, tcp(7000))

    results = await asyncio.gather(
        scene.networks._rules.change(twice),
        scene.networks.publish(second, tcp(7001)),
        scene.networks._rules.change(twice),
        return_exceptions=True,
    )

    assert [isinstance(one, FirewallError) for one in results] == [True, False, True]
    assert scene.place.ports() == {7000, 7001}
    await scene.end(first)
    await scene.end(second)


async def test_what_others_flush_is_written_anew(scene: Scene) -> None:
    """Each time, and the log names who did it."""
    link = await scene.link(1)
    await scene.networks.publish(link, tcp(7000))
    for count in (1, 2):
        scene.place.flush()
        told = await scene.place.told.wait("firewall_changed_by_others_restoring", count)
        await scene.place.told.wait("firewall_restored", count)
        assert told["by"]
        assert scene.place.ports() == {7000}
    await scene.end(link)


async def test_a_change_right_after_a_flush_holds(scene: Scene) -> None:
    """Whether it comes before the restore or with it."""
    link = await scene.link(1)
    scene.place.flush()
    await scene.networks.publish(link, tcp(7000))
    told = (
        scene.place.told
    )  # iptables refuses a change of chains that are gone, and all are written anew at once
    await until(
        lambda: bool(told.of("firewall_restored") or told.of("firewall_was_not_as_left")),
        lambda: "nothing logged",
    )

    assert scene.place.ports() == {7000}
    await scene.end(link)


async def test_the_next_manager_takes_up_what_it_names_and_removes_the_rest(scene: Scene) -> None:
    """In one step; until then all stays as it is."""
    kept, lost = await scene.link(1), await scene.link(2)
    await scene.networks.publish(kept, tcp(7000))
    await scene.networks.publish(lost, tcp(7001))
    await scene.networks.close()

    scene.networks = await scene.place.open()
    assert scene.place.ports() == {7000, 7001}
    found = await scene.networks.restore([Restored(kept.link_id, kept.lease, (EVERYWHERE,), (tcp(7000),))])

    assert found == {kept.link_id: kept}
    assert scene.place.ports() == {7000}
    await scene.end(kept)
    scene.spaces.pop(lost.link_id).close()


async def test_what_is_removed_is_gone_and_may_be_made_again(scene: Scene) -> None:
    """The tables go with the last manager; removing nothing is fine."""
    await scene.networks.close(remove_tables=True)
    firewall = scene.place.make()
    await firewall.remove()

    policy = scene.networks._policy
    assert [await firewall.ensure(policy) for _ in range(2)] == [True, False]
    await firewall.remove()
    await firewall.close()
    scene.networks = await scene.place.open()
