"""Published ports: no program of the host can take them; release, take-up, and no connection survives into the next owner."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
import testhost
from depot_kit import app, nothing_left, settings_for
from depot_kit import stack as stack
from netns_kit import FAR_IP, HOST_IP, PROTOCOLS, TCP, UDP, ask, talk
from network_kit import APP_PORT, EVERYWHERE, Rig, Told, reaches, rig, tcp, udp

from container import CreateError, Depot, NoLease, PortMapping, Protocol
from container.network import NoPorts, PortTaken

pytestmark = pytest.mark.kernel


@pytest_asyncio.fixture
async def scene(tmp_path: Path, stack: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, stack, port_first=20_000, port_count=4) as scene:
        yield scene


def listener(kind: int, address: str, port: int, *, only_ipv6: bool = False) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    try:
        if only_ipv6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        if kind == TCP:
            made.listen()
    except OSError:
        made.close()
        raise
    return made


LISTENERS = {
    "everywhere": ("0.0.0.0", False),
    "loopback": ("127.0.0.1", False),
    "one address": (HOST_IP, False),
    "both families": ("::", False),
    "ipv6 alone": ("::", True),
    "ipv6 loopback": ("::1", False),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("where", LISTENERS)
async def test_a_port_that_the_host_listens_on_is_not_published(
    scene: Rig, where: str, protocol: str
) -> None:
    """It would silently lose its traffic; the error names the port."""
    box = await scene.box("app")
    address, only_ipv6 = LISTENERS[where]
    with listener(PROTOCOLS[protocol], address, 7300, only_ipv6=only_ipv6):
        with pytest.raises(PortTaken, match=f"host port 7300/{protocol}: in use"):
            await box.container.net_in(PortMapping(Protocol(protocol), 7300, APP_PORT))

    assert "7300" not in scene.rules()
    await box.container.net_in(PortMapping(Protocol(protocol), 7300, APP_PORT))
    assert reaches(scene.world.space, PROTOCOLS[protocol], HOST_IP, 7300) == "app"


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_published_port_is_not_the_host_s_to_listen_on(scene: Rig, protocol: str) -> None:
    """Until the container is gone; the reservation itself is no listener."""
    await scene.box("app", ports=(PortMapping(Protocol(protocol), 7300, APP_PORT),))
    for address, only_ipv6 in LISTENERS.values():
        with pytest.raises(OSError) as refused:
            listener(PROTOCOLS[protocol], address, 7300, only_ipv6=only_ipv6)
        assert refused.value.errno == errno.EADDRINUSE
    assert ask(scene.world.space, PROTOCOLS[protocol], "192.0.2.1", 7300, wait_s=10.0).name == "app"

    await scene.end("app")
    listener(PROTOCOLS[protocol], "0.0.0.0", 7300).close()


async def test_ports_are_asked_for_or_given(scene: Rig) -> None:
    """An explicit one is that one; else one of the pool; inside it is the same unless told."""
    box = await scene.box("app")

    mappings = [
        await box.container.net_in(asked)
        for asked in (tcp(7300), tcp(7301, None), tcp(None), PortMapping(), udp(7300), udp(20_002, None))
    ]

    assert [(one.host_port, one.container_port) for one in mappings] == [
        (7300, APP_PORT), (7301, 7301), (20_000, APP_PORT), (20_001, 20_001), (7300, APP_PORT), (20_002, 20_002)
    ]  # fmt: skip
    assert box.container.ports == tuple(mappings)
    assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "app"
    assert reaches(scene.world.space, UDP, HOST_IP, 7300) == "app"


async def test_the_pool_passes_over_what_the_host_uses_and_comes_to_an_end(scene: Rig) -> None:
    """Four ports, one of them a listener's; what is given back is given out again."""
    box = await scene.box("app")
    with listener(TCP, "0.0.0.0", 20_001):
        given = [(await box.container.net_in(PortMapping())).host_port for _ in range(3)]
        assert given == [20_000, 20_002, 20_003]
        with pytest.raises(NoPorts, match="all 4 of 20000-20003 are in use"):
            await box.container.net_in(PortMapping())
    assert (await box.container.net_in(PortMapping())).host_port == 20_001
    with pytest.raises(CreateError, match="20000-20003"):
        await scene.box("late", ports=(PortMapping(),))
    await scene.end("app")

    assert {(await (await scene.box("next")).container.net_in(PortMapping())).host_port} <= set(given)


async def test_a_port_is_published_once(scene: Rig) -> None:
    """By a protocol; the other one is free."""
    one, two = await scene.box("one", ports=(tcp(7300),)), await scene.box("two")
    for box in (one, two):
        with pytest.raises(PortTaken, match="host port 7300/tcp: published already"):
            await box.container.net_in(tcp(7300))
    await two.container.net_in(udp(7300))

    assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "one"
    assert reaches(scene.world.space, UDP, HOST_IP, 7300) == "two"


async def test_a_caller_that_goes_away_leaves_a_whole_mapping_or_none(scene: Rig) -> None:
    """Cancelled at once, the work is carried out; what the host holds and what the rules say agree."""
    box = await scene.box("app")
    publishing = asyncio.create_task(box.container.net_in(tcp(7300)))
    await asyncio.sleep(0)
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)

    with pytest.raises(OSError):
        listener(TCP, "0.0.0.0", 7300)
    assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "app"
    await scene.end("app")
    listener(TCP, "0.0.0.0", 7300).close()
    assert "7300" not in scene.rules()


# Connections.


async def test_a_datagram_of_an_old_conversation_does_not_reach_a_new_owner_by_an_old_way(scene: Rig) -> None:
    """The client goes on from the same port: it speaks to whoever has the port now, never to the former address."""
    with scene.world.space.socket(UDP) as client:
        client.settimeout(10.0)
        await scene.box("old", ports=(udp(7300),))
        assert talk(client, b"1", (HOST_IP, 7300)).name == "old"
        await scene.end("old")
        client.settimeout(0.3)
        assert not talk(client, b"2"), "nobody has the port"
        await scene.box("new", ports=(udp(7300),))
        client.settimeout(10.0)

        assert talk(client, b"3").name == "new"


async def test_whoever_spoke_before_a_port_was_published_reaches_it_afterwards(scene: Rig) -> None:
    """The kernel knows that conversation as one with the host."""
    box = await scene.box("app")
    with scene.world.space.socket(UDP) as client:
        client.settimeout(0.3)
        assert not talk(client, b"1", (HOST_IP, 7300))
        await box.container.net_in(udp(7300))
        client.settimeout(10.0)

        assert talk(client, b"2").name == "app"


async def test_the_conversations_of_others_are_left_alone(scene: Rig) -> None:
    """Those to the same port of another machine: the host's own, and another container's."""
    await scene.box("app", ports=(tcp(8080), udp(8080)))
    other = await scene.box("other", egress=(EVERYWHERE,))
    before = entries(scene)
    mouths = [where.socket(kind) for where in (scene.host, other.space) for kind in (TCP, UDP)]
    for mouth in mouths:
        mouth.settimeout(10.0)
        assert talk(mouth, b"1", (FAR_IP, 8080)).name == "world"
    known = entries(scene) - before
    assert len(known) == 4

    await scene.end("app")
    await other.container.net_in(udp(8080))

    assert known <= entries(scene)
    assert [talk(mouth, b"2").name for mouth in mouths] == ["world"] * 4
    for mouth in mouths:
        mouth.close()


async def test_a_container_leaves_no_conversation_behind(scene: Rig) -> None:
    """Its address will be somebody else's: neither what it began nor what was led to it is known any more."""
    box = await scene.box("app", ports=(tcp(7300), udp(7300)), egress=(EVERYWHERE,))
    for kind in (TCP, UDP):
        assert reaches(box.space, kind, FAR_IP, 80) == "world"
        assert reaches(scene.world.space, kind, HOST_IP, 7300) == "app"
        assert reaches(scene.host, kind, "127.0.0.1", 7300) == "app"
    assert any(box.address in entry for entry in entries(scene))
    await scene.end("app")

    assert not [entry for entry in entries(scene) if f"={box.address} " in entry]


def entries(scene: Rig) -> set[str]:
    """Connections as the kernel knows them, without what changes by itself."""
    found = set()
    for line in scene.host.do(lambda: Path("/proc/thread-self/net/nf_conntrack").read_text()).splitlines():
        words = [word for word in line.split() if word.split("=")[0] in ("src", "dst", "sport", "dport")]
        found.add(" ".join([line.split()[2], *words]) + " ")
    return found


# After a restart.


async def test_after_a_restart_ports_are_held_again(tmp_path: Path, stack: Path) -> None:
    """One that a listener took meanwhile is told of, and leads inside all the same."""
    settings = settings_for(tmp_path, disk_limits=False)
    told = Told()
    async with AsyncExitStack() as undo:
        first = await Depot.open(settings)
        await first.create(app(stack, handle="app", ports=(tcp(7300), tcp(7301), udp(7300))))
        rules = testhost.run("nft", "list", "ruleset")
        await first.close()
        taken = undo.enter_context(listener(TCP, "0.0.0.0", 7301))

        second = await Depot.open(settings, log=told)
        await second.recover()

        assert [line["port"] for line in told.of("host_port_taken_meanwhile")] == [7301]
        assert testhost.run("nft", "list", "ruleset") == rules
        for kind in (TCP, UDP):
            with pytest.raises(OSError):
                listener(kind, "0.0.0.0", 7300)
        assert [one.host_port for one in second.find("app").ports] == [7300, 7301, 7300]
        taken.close()
        await second.destroy("app")
        listener(TCP, "0.0.0.0", 7300).close()
        await nothing_left(settings)
        await second.close(remove_tables=True)
        second._shared.cgroups.remove_parents()


async def test_the_pools_go_on_after_a_restart_where_they_were(tmp_path: Path, stack: Path) -> None:
    """Ports and addresses alike: what was released last is given out last, also by the next manager."""
    settings = settings_for(
        tmp_path, disk_limits=False, port_first=20_000, port_count=3, pool_network="10.254.0.0/28"
    )
    given = []
    for number in range(5):
        depot = await Depot.open(settings)
        await depot.recover()
        container = await depot.create(app(stack, handle="app", ports=(PortMapping(),)))
        address = container._parts.lease
        assert address is not None
        given.append((container.ports[0].host_port, address.network))
        await depot.destroy("app")
        await nothing_left(settings)
        await depot.close(remove_tables=number == 4)
    assert [port for port, _ in given] == [20_000, 20_001, 20_002, 20_000, 20_001]
    assert [network for _, network in given] == [f"10.254.0.{4 * number}/30" for number in (0, 1, 2, 3, 0)]
    depot._shared.cgroups.remove_parents()


async def test_what_recovery_removes_rests_as_what_is_released(tmp_path: Path, stack: Path) -> None:
    """A container that died without a manager: its port and its address are not the next one's at once."""
    settings = settings_for(
        tmp_path, disk_limits=False, port_first=20_000, port_count=2, pool_network="10.254.0.0/29"
    )
    settings = dataclasses.replace(settings, release_delay_s=60.0)
    first = await Depot.open(settings)
    dead = await first.create(app(stack, handle="dead", ports=(PortMapping(),)))
    os.kill(dead._parts.pid, signal.SIGKILL)
    await dead.wait_dead()
    await first.close()

    second = await Depot.open(settings)
    await second.recover()

    alive = await second.create(app(stack, handle="alive", ports=(PortMapping(),)))
    assert (alive.ports[0].host_port, dead.ports[0].host_port) == (20_001, 20_000)
    with pytest.raises(NoLease):
        await second.create(app(stack, handle="late"))
    await second.destroy("alive")
    await nothing_left(settings)
    await second.close(remove_tables=True)
    second._shared.cgroups.remove_parents()


async def test_an_explicit_port_of_the_pool_is_not_given_out_twice(scene: Rig) -> None:
    """And comes back to it."""
    box = await scene.box("app", ports=(tcp(20_000),))
    assert [(await box.container.net_in(PortMapping())).host_port for _ in range(3)] == [
        20_001,
        20_002,
        20_003,
    ]
    await scene.end("app")
    again = await scene.box("again")
    assert sorted([(await again.container.net_in(PortMapping())).host_port or 0 for _ in range(4)]) == [
        *range(20_000, 20_004)
    ]
