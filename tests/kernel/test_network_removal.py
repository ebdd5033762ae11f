"""Published ports and egress rules are removed one by one, at once: with the connections that they permitted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import app, close_empty, settings_for
from depot_kit import stack as stack
from netns_kit import FAR_IP, HOST_IP, TCP, UDP, ask, talk
from network_kit import APP_PORT, EVERYWHERE, Rig, reaches, rig, tcp, udp

from container import Depot, EgressRule, NoSuchRule, PortMapping, PortRange, Protocol, WrongState
from container.network.firewall import FirewallError

pytestmark = pytest.mark.kernel
WEB = EgressRule(Protocol.TCP, (FAR_IP,), (PortRange(80, 80),))
OTHER = EgressRule(Protocol.TCP, (FAR_IP,), (PortRange(8080, 8081),))


@pytest_asyncio.fixture
async def scene(tmp_path: Path, stack: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, stack) as scene:
        yield scene


def speaks(mouth: socket.socket, to: tuple[str, int] | None = None, wait_s: float = 10.0) -> str:
    """Who answers on this connection; '' when nobody does."""
    mouth.settimeout(wait_s)
    return talk(mouth, b"t", to).name


# ---- published ports -----------------------------------------------------------------------------------------------


async def test_a_removed_port_leads_nowhere(scene: Rig) -> None:
    """Connections that came by it end; the other ports of the container go on, and the host may listen there."""
    box = await scene.box("app", ports=(tcp(7300), udp(7300), tcp(7301)))
    with (
        scene.world.space.socket(TCP) as removed,
        scene.world.space.socket(TCP) as kept,
        scene.world.space.socket(UDP) as datagrams,
    ):
        assert speaks(removed, (HOST_IP, 7300)) == speaks(kept, (HOST_IP, 7301)) == "app"
        assert speaks(datagrams, (HOST_IP, 7300)) == "app"

        await box.container.remove_net_in(tcp(7300))

        assert box.container.ports == (udp(7300), tcp(7301))
        assert ask(scene.world.space, TCP, HOST_IP, 7300, wait_s=10.0).refused
        assert not speaks(removed, wait_s=1.0)
        assert speaks(kept) == "app"
        assert speaks(datagrams) == "app"
        await box.container.remove_net_in(udp(7300))
        assert not speaks(datagrams, wait_s=0.3)
    with socket.socket(socket.AF_INET, TCP) as listener:
        listener.bind(("0.0.0.0", 7300))


async def test_a_removed_port_can_be_published_again_by_another(scene: Rig) -> None:
    box, other = await scene.box("app", ports=(tcp(7300),)), await scene.box("other")
    await box.container.remove_net_in(tcp(7300))
    await other.container.net_in(tcp(7300))
    assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "other"
    await scene.end("app")
    assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "other"


async def test_what_is_not_published_cannot_be_removed(scene: Rig) -> None:
    """Neither another container's port, nor one of the same number and another protocol."""
    box, other = await scene.box("app", ports=(tcp(7300),)), await scene.box("other")
    for container, mapping in ((other.container, tcp(7300)), (box.container, udp(7300))):
        with pytest.raises(NoSuchRule, match=r"does not publish PortMapping"):
            await container.remove_net_in(mapping)
    with pytest.raises(NoSuchRule, match=r"has no egress rule EgressRule"):
        await box.container.remove_net_out(WEB)
    assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "app"


async def test_a_refused_removal_leaves_the_port(scene: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await scene.box("app", ports=(tcp(7300),))
    rules = scene.depot._shared.networks._rules

    async def refuses(*_: object, **__: object) -> None:
        raise FirewallError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(rules, "change", refuses)
        with pytest.raises(FirewallError):
            await box.container.remove_net_in(tcp(7300))
    assert box.container.ports == (tcp(7300),)
    assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "app"
    with pytest.raises(OSError), socket.socket(socket.AF_INET, TCP) as listener:
        listener.bind(("0.0.0.0", 7300))


# ---- egress rules --------------------------------------------------------------------------------------------------


async def test_a_removed_rule_ends_its_connections_alone(scene: Rig) -> None:
    """Those of other rules go on, those that came in too, and those of other containers."""
    box = await scene.box("app", egress=(WEB, OTHER), ports=(tcp(7300),))
    other = await scene.box("other", egress=(WEB,))
    with (
        box.space.socket(TCP) as removed,
        box.space.socket(TCP) as kept,
        scene.world.space.socket(TCP) as inbound,
        other.space.socket(TCP) as neighbour,
    ):
        assert speaks(removed, (FAR_IP, 80)) == speaks(kept, (FAR_IP, 8080)) == "world"
        assert speaks(inbound, (HOST_IP, 7300)) == "app"
        assert speaks(neighbour, (FAR_IP, 80)) == "world"

        await box.container.remove_net_out(WEB)

        assert box.container.egress == (OTHER,)
        assert ask(box.space, TCP, FAR_IP, 80, wait_s=10.0).refused
        assert not speaks(removed, wait_s=1.0)
        assert speaks(kept) == "world"
        assert speaks(inbound) == "app"
        assert speaks(neighbour) == "world"
        assert reaches(box.space, TCP, FAR_IP, 8081) == "world"


async def test_a_connection_that_another_rule_permits_goes_on(scene: Rig) -> None:
    """Of two equal rules one stays; a wider rule covers a narrow one."""
    box = await scene.box("app", egress=(WEB, EVERYWHERE, WEB))
    with box.space.socket(TCP) as mouth:
        assert speaks(mouth, (FAR_IP, 80)) == "world"
        await box.container.remove_net_out(WEB)
        assert box.container.egress == (WEB, EVERYWHERE)
        await box.container.remove_net_out(WEB)
        assert speaks(mouth) == "world"
        await box.container.remove_net_out(EVERYWHERE)
        assert not speaks(mouth, wait_s=1.0)
    assert not box.container.egress


async def test_datagrams_stop_too(scene: Rig) -> None:
    box = await scene.box("app", egress=(EVERYWHERE,))
    with box.space.socket(UDP) as mouth:
        assert speaks(mouth, (FAR_IP, 80)) == "world"
        await box.container.remove_net_out(EVERYWHERE)
        assert not speaks(mouth, wait_s=0.3)


# ---- both ----------------------------------------------------------------------------------------------------------


async def test_changes_at_once_lose_none_of_each_other(scene: Rig) -> None:
    """Each builds on the list that the former one has left."""
    box = await scene.box("app", egress=(OTHER,))
    rules = [EgressRule(Protocol.TCP, (FAR_IP,), (PortRange(port, port),)) for port in range(9000, 9020)]
    await asyncio.gather(
        *(box.container.net_out(rule) for rule in rules),
        *(box.container.net_in(PortMapping(Protocol.TCP, 7400 + n, APP_PORT)) for n in range(10)),
        box.container.remove_net_out(OTHER),
    )
    assert sorted(box.container.egress, key=lambda rule: rule.ports[0].first) == rules
    assert len(box.container.ports) == 10
    assert reaches(box.space, TCP, FAR_IP, 9000) == "world"


async def test_a_caller_that_goes_away_leaves_a_whole_change(scene: Rig) -> None:
    """What the firewall holds and what the container says agree."""
    box = await scene.box("app", egress=(WEB,), ports=(tcp(7300),))
    for change in (box.container.remove_net_out(WEB), box.container.remove_net_in(tcp(7300))):
        task = asyncio.create_task(change)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (box.container.egress, box.container.ports) == ((), ())
    assert ask(box.space, TCP, FAR_IP, 80, wait_s=10.0).refused
    assert ask(scene.world.space, TCP, HOST_IP, 7300, wait_s=10.0).refused


async def test_a_removal_outlives_the_manager(tmp_path: Path, stack: Path) -> None:
    settings = settings_for(tmp_path, disk_limits=False)
    former = await Depot.open(settings)
    container = await former.create(
        app(stack, handle="app", ports=(tcp(7300), tcp(7301)), egress=(WEB, OTHER))
    )
    await container.remove_net_in(tcp(7300))
    await container.remove_net_out(WEB)
    await former.close()

    depot = await Depot.open(settings)
    await depot.recover()

    again = depot.find("app")
    assert (again.ports, again.egress) == ((tcp(7301),), (OTHER,))
    await again.net_in(tcp(7300))
    await close_empty(depot)


async def test_a_container_without_a_network_has_nothing_to_remove(tmp_path: Path, stack: Path) -> None:
    depot = await Depot.open(settings_for(tmp_path, disk_limits=False))
    container = await depot.create(app(stack, network=False))
    with pytest.raises(WrongState, match="has no network"):
        await container.remove_net_in(tcp(7300))
    with pytest.raises(WrongState, match="has no network"):
        await container.remove_net_out(WEB)
    await close_empty(depot)
