"""Another program removes our firewall tables: all traffic is blocked, the log names the program, and the tables are restored."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import stack as stack
from netns_kit import FAR_IP, HOST_IP, PROTOCOLS, TCP, UDP, WORLD_IP, ask, settle, talk
from network_kit import EVERYWHERE, HOST_PORTS, Rig, hears_nobody, reaches, rig, tcp, udp

pytestmark = pytest.mark.kernel
PUBLISHED = 7000


@pytest_asyncio.fixture
async def scene(tmp_path: Path, stack: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, stack) as scene:
        await scene.box("app", ports=(tcp(PUBLISHED), udp(PUBLISHED)), egress=(EVERYWHERE,))
        await scene.box("peer")
        yield scene


def is_open(scene: Rig) -> dict[str, bool]:
    """What the rules of `app` promise."""
    app, world = scene.boxes["app"], scene.world.space
    ways = {"out": (app.space, FAR_IP, 8080, "world"), "in": (world, HOST_IP, PUBLISHED, "app")}
    return {
        f"{way} {protocol}": ask(where, kind, address, port).name == name
        for way, (where, address, port, name) in ways.items()
        for protocol, kind in PROTOCOLS.items()
    }


async def test_what_others_flush_is_restored_and_they_are_named(scene: Rig) -> None:
    """The rule set is to the letter what it was; another flush is answered as well."""
    rules = scene.rules()
    for count in (1, 2, 3):
        scene.host.run("nft", "flush", "ruleset")
        told = await scene.told.wait("firewall_changed_by_others_restoring", count)
        await scene.told.wait("firewall_restored", count)

        assert told["by"].startswith("nft (pid ")
        assert told["containers"] == 2
        assert scene.rules() == rules
        assert all(is_open(scene).values()), is_open(scene)


CHANGES = {
    "the table": "delete table inet garrison",
    "the gates": "delete table netdev garrison",
    "a chain's rules": "flush chain inet garrison c_from",
    "the permissions": "flush map inet garrison m_outer",
    "the ports": "flush map inet garrison m_port",
    "an accept put first": "insert rule inet garrison c_from accept",
}


@pytest.mark.parametrize("what", CHANGES)
async def test_whatever_touches_our_tables_is_undone(scene: Rig, what: str) -> None:
    """Not only what is gone: a rule that opens is as wrong as a rule that is missing."""
    rules = scene.rules()
    scene.host.run("nft", CHANGES[what])
    await scene.told.wait("firewall_restored")

    assert scene.rules() == rules


async def test_what_others_do_elsewhere_is_their_own_business(scene: Rig) -> None:
    """Seen by the next change of ours, which is none of theirs either."""
    scene.host.run("nft", "add table inet theirs")
    scene.host.run("nft", "delete table inet theirs")
    await scene.boxes["peer"].container.net_out(EVERYWHERE)
    await scene.end("peer")

    assert not scene.told.of("firewall_changed_by_others_restoring")


def flush(scene: Rig) -> None:
    """Runs to its end within this turn of the loop: nobody restores before the test has looked."""
    scene.host.run("nft", "flush", "ruleset")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_without_our_tables_a_container_reaches_nothing(scene: Rig, protocol: str) -> None:
    """Its gateway's address is nobody's, so what it sends ends at the host's end (docs/network.md, "Links")."""
    app, kind = scene.boxes["app"], PROTOCOLS[protocol]
    before = {address: reaches(app.space, kind, address, 8080) for address in (FAR_IP, WORLD_IP)}
    assert set(before.values()) == {"world"}
    flush(scene)

    hears_nobody(scene, kind)
    await scene.told.wait("firewall_restored")
    assert all(is_open(scene).values()), is_open(scene)


@pytest.mark.parametrize("address", ["255.255.255.255", "broadcast", "224.0.0.1", "239.1.2.3"])
async def test_without_our_tables_no_broadcast_reaches_the_host(scene: Rig, address: str) -> None:
    """A packet for all needs no neighbour; it must not find the host's listeners either."""
    app = scene.boxes["app"]
    to = app.address.rsplit(".", 1)[0] + f".{int(app.address.rsplit('.', 1)[1]) + 1}"
    with app.space.socket(UDP) as mouth:
        mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        flush(scene)
        mouth.sendto(b"for all", (to if address == "broadcast" else address, HOST_PORTS[0]))
    settle(scene.host, HOST_PORTS[0], scene.world.services, "host")

    assert b"for all" not in scene.world.services.tokens("host")
    await scene.told.wait("firewall_restored")


async def test_connections_live_on_after_a_restore(scene: Rig) -> None:
    """Those of the app and those to it, on either protocol."""
    app, world = scene.boxes["app"], scene.world.space
    mouths = {}
    for name, where, kind, to in (
        ("out tcp", app.space, TCP, (FAR_IP, 8080)),
        ("out udp", app.space, UDP, (FAR_IP, 8080)),
        ("in tcp", world, TCP, (HOST_IP, PUBLISHED)),
        ("in udp", world, UDP, (HOST_IP, PUBLISHED)),
    ):
        mouths[name] = where.socket(kind)
        mouths[name].settimeout(10.0)
        assert talk(mouths[name], b"before", to)
    flush(scene)
    await scene.told.wait("firewall_restored")

    after = {name: bool(talk(mouth, b"after")) for name, mouth in mouths.items()}
    for mouth in mouths.values():
        mouth.close()
    assert all(after.values()), after


async def test_a_change_that_finds_the_tables_gone_makes_them_anew(scene: Rig) -> None:
    """A create, a publish and a destroy that come in the moment of the flush succeed."""
    flush(scene)
    late = asyncio.create_task(scene.box("late", egress=(EVERYWHERE,)))
    published = asyncio.create_task(scene.boxes["peer"].container.net_in(tcp()))
    gone = asyncio.create_task(scene.end("app"))
    made, mapping, _ = await asyncio.gather(late, published, gone)
    await scene.told.wait("firewall_restored")

    assert reaches(made.space, TCP, FAR_IP, 8080) == "world"
    assert mapping.host_port is not None
    assert reaches(scene.world.space, TCP, HOST_IP, mapping.host_port) == "peer"
    assert PUBLISHED not in {int(line.split(" . ")[1].split()[0]) for line in port_elements(scene)}


def port_elements(scene: Rig) -> list[str]:
    text = scene.host.run("nft", "list", "map", "inet", "garrison", "m_port")
    return [part.strip() for part in text.split("{")[-1].split("}")[0].split(",")]
