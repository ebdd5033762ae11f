"""The contract of the network: who reaches whom, under which rule (ARCHITECTURE.md, network).

Real containers behind each firewall back end; a case is a row, and each row is its own test. Three containers ask:
`none` has no rule, `wide` an allow of 0.0.0.0/0, `exact` one rule for each destination that the rows name.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import testhost
from depot_kit import app, nothing_left, settings_for
from depot_kit import stack as stack
from netns_kit import (
    DNS_IP,
    FAR_IPS,
    HOST_IP,
    METADATA_IP,
    PROTOCOLS,
    SILENCE_S,
    TCP,
    UDP,
    WORLD_IP,
    Answer,
    Namespace,
    World,
    ask,
    settle,
)

from container import Container, Depot, EgressRule, PortMapping, PortRange, Protocol

pytestmark = [pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

#: The same contract holds for each; iptables comes with the container manager's issue.
BACK_ENDS = ("nftables",)
ASKERS = ("none", "wide", "exact")
APP, HOST_SERVICE, OTHER_HOST_SERVICE = 7100, 7200, 7201  # ports
PUBLISHED = {"peer": 7000, "none": 7001, "wide": 7002, "exact": 7003}
OTHER_HOST_IP = "192.0.2.1"  # testhost.py
ETH_P_ARP = 0x0806


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to go; addresses are of the one who asks (`own`) or of the peer."""

    address: str
    port: int
    answers: str  # the service's name; "self": the asker's own
    seen_as: str  # the peer that the service sees
    wide: bool = False  # does an allow of 0.0.0.0/0 open it


PLACES = {
    "world": Place(FAR_IPS[0], 8080, "world", HOST_IP, wide=True),
    "world-next-hop": Place(WORLD_IP, 8080, "world", HOST_IP, wide=True),
    "host-uplink": Place(HOST_IP, HOST_SERVICE, "host", "own address"),
    "host-other-uplink": Place(OTHER_HOST_IP, HOST_SERVICE, "host", "own address"),
    "host-own-gateway": Place("own gateway", HOST_SERVICE, "host", "own address"),
    "host-peer-s-gateway": Place("peer gateway", HOST_SERVICE, "host", "own address"),
    "peer": Place("peer address", APP, "peer", "own address"),
    "peer-published": Place(HOST_IP, PUBLISHED["peer"], "peer", "peer gateway"),
    "peer-published-own-gateway": Place("own gateway", PUBLISHED["peer"], "peer", "peer gateway"),
    "self-published": Place(HOST_IP, 0, "self", "own gateway"),
    "metadata": Place(METADATA_IP, 80, "world", HOST_IP),
}


class Scene:
    """The host, the world behind it, and the containers."""

    def __init__(self, world: World, boxes: dict[str, Container], spaces: dict[str, Namespace]) -> None:
        self.world = world
        self.host = world.host
        self.services = world.services
        self.boxes = boxes
        self.spaces = spaces

    def resolve(self, word: str, asker: str) -> str:
        """`own gateway` and the like to the address that is meant."""
        whose, _, which = word.partition(" ")
        if not which:
            return word
        box = self.boxes[asker if whose == "own" else whose]
        found = box.address if which == "address" else box.host_address
        assert found is not None
        return found

    def was_heard(self, name: str, answer: Answer) -> bool:
        """Also what was not answered; the service has read all that came before the question."""
        where, port = {
            "host": (self.host, HOST_SERVICE),
            "world": (self.world.space, 8080),
        }.get(name, (self.spaces.get(name, self.host), APP))
        settle(where, port, self.services, name)
        return any(one.token == answer.token for one in self.services.heard)


def rules_for(asker: str, boxes: dict[str, Container]) -> tuple[EgressRule, ...]:
    if asker == "none":
        return ()
    if asker == "wide":
        return (EgressRule(Protocol.ALL, ("0.0.0.0/0",)),)
    scene = Scene.__new__(Scene)
    scene.boxes = boxes
    return tuple(
        EgressRule(Protocol(protocol), (scene.resolve(place.address, asker),), (PortRange(port, port),))
        for place in PLACES.values()
        for port in [place.port or PUBLISHED[asker]]
        for protocol in PROTOCOLS
    )


def both(host_port: int, container_port: int) -> tuple[PortMapping, ...]:
    return tuple(PortMapping(Protocol(one), host_port, container_port) for one in PROTOCOLS)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=BACK_ENDS)
async def scene(
    request: pytest.FixtureRequest, test_host: None, tmp_path_factory: pytest.TempPathFactory, stack: Path
) -> AsyncIterator[Scene]:
    before = testhost.take_picture()
    settings = settings_for(tmp_path_factory.mktemp("contract"), dns_servers=(DNS_IP,), disk_limits=False)
    with ExitStack() as undo:
        world = World(undo)
        depot = await Depot.open(settings)
        boxes: dict[str, Container] = {}
        spaces: dict[str, Namespace] = {}
        for kind, port in itertools.product((TCP, UDP), (HOST_SERVICE, OTHER_HOST_SERVICE)):
            world.services.add("host", world.host, kind, port)
        for name, published in PUBLISHED.items():
            boxes[name] = await depot.create(app(stack, handle=name, ports=both(published, APP)))
            for rule in rules_for(name, boxes) if name in ASKERS else ():
                await boxes[name].net_out(rule)
            spaces[name] = Namespace.of(boxes[name].pid)
            undo.callback(spaces[name].close)
            for kind in (TCP, UDP):
                world.services.add(name, spaces[name], kind, APP)
        yield Scene(world, boxes, spaces)
        for handle in depot.handles():
            await depot.destroy(handle)
    await nothing_left(settings)
    await depot.close(remove_tables=True)
    depot._host.cgroups.remove_parents()
    left = testhost.wait_same(before)
    assert not left, "the contract left a trace:\n" + "\n".join(left)


@pytest.fixture(params=ASKERS)
def asker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("to", PLACES)
async def test_a_container_reaches_what_its_rules_name_and_nothing_else(
    scene: Scene, asker: str, to: str, protocol: str
) -> None:
    """An allow of 0.0.0.0/0 is the world: not the host, not other containers, not the metadata service."""
    place = PLACES[to]
    may = asker == "exact" or (asker == "wide" and place.wide)
    service = asker if place.answers == "self" else place.answers

    answer = ask(
        scene.spaces[asker],
        PROTOCOLS[protocol],
        scene.resolve(place.address, asker),
        place.port or PUBLISHED[asker],
        wait_s=10.0 if may else SILENCE_S,
    )

    assert (answer.name, answer.peer) == ((service, scene.resolve(place.seen_as, asker)) if may else ("", ""))
    assert may or answer.refused, "an app that may not is told so at once, it does not hang"
    assert may or not scene.was_heard(service, answer)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_rule_for_a_port_of_the_host_opens_no_other(scene: Scene, protocol: str) -> None:
    """The exact rule names the address and the port."""
    answer = ask(scene.spaces["exact"], PROTOCOLS[protocol], HOST_IP, OTHER_HOST_SERVICE)

    assert answer.refused


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_there_is_no_ipv6_to_leave_by(scene: Scene, asker: str, protocol: str) -> None:
    """Else the host is reached at fe80::, whatever the rules for IPv4 say."""
    addresses = scene.spaces[asker].run("ip", "-6", "-oneline", "address")
    answer = ask(scene.spaces[asker], PROTOCOLS[protocol], "fe80::1%2", HOST_SERVICE, family=socket.AF_INET6)

    assert "eth0" not in addresses
    assert answer.refused
    assert "fe80::" in scene.host.run("ip", "-6", "address"), "the host has none either: this proves nothing"


FROM_OUTSIDE = {
    "world-to-uplink": ("world", HOST_IP, WORLD_IP),
    "world-to-other-uplink": ("world", OTHER_HOST_IP, WORLD_IP),
    "host-to-uplink": ("host", HOST_IP, HOST_IP),
    "host-to-loopback": ("host", "127.0.0.1", "peer gateway"),
    "host-to-gateway": ("host", "peer gateway", "peer gateway"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("way", FROM_OUTSIDE)
async def test_a_published_port_is_reached(scene: Scene, way: str, protocol: str) -> None:
    """From outside, from the host itself, and on loopback; from outside the app sees the client's own address."""
    whence, address, seen_as = FROM_OUTSIDE[way]
    where = scene.world.space if whence == "world" else scene.host

    to = scene.resolve(address, "peer")
    answer = ask(where, PROTOCOLS[protocol], to, PUBLISHED["peer"], wait_s=10.0)

    assert (answer.name, answer.peer) == ("peer", scene.resolve(seen_as, "peer"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_port_that_is_not_published_is_the_host_s(scene: Scene, protocol: str) -> None:
    """The map leads away what is in it, and nothing else."""
    answer = ask(scene.world.space, PROTOCOLS[protocol], HOST_IP, HOST_SERVICE, wait_s=10.0)

    assert (answer.name, answer.peer) == ("host", WORLD_IP)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("port", [APP, PUBLISHED["peer"]])
async def test_the_world_does_not_reach_a_container_by_its_own_address(
    scene: Scene, protocol: str, port: int
) -> None:
    """Though it knows the way: the host forwards, and the pool is not hidden by itself."""
    address = scene.resolve("peer address", "peer")
    answer = ask(scene.world.space, PROTOCOLS[protocol], address, port)

    assert not answer
    assert not scene.was_heard("peer", answer)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_host_reaches_a_container_by_its_own_address(scene: Scene, protocol: str) -> None:
    """As with Warden (B.6): the health check needs it."""
    address = scene.resolve("peer address", "peer")
    answer = ask(scene.host, PROTOCOLS[protocol], address, APP, wait_s=10.0)

    assert (answer.name, answer.peer) == ("peer", scene.resolve("peer gateway", "peer"))


DNS = {
    "configured-server": (DNS_IP, 53, True),
    "another-server": (FAR_IPS[0], 53, False),
    "the-server-s-other-port": (DNS_IP, 8080, False),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", DNS)
async def test_names_are_resolved_by_the_configured_servers_without_a_rule(
    scene: Scene, case: str, protocol: str
) -> None:
    """Port 53 of those, and nothing beside it."""
    address, port, may = DNS[case]
    answer = ask(scene.spaces["none"], PROTOCOLS[protocol], address, port, wait_s=10.0 if may else SILENCE_S)

    assert bool(answer) is may
    assert may or answer.refused


def udp_packet(source: str, to: str, port: int, token: bytes) -> bytes:
    """An IPv4 packet with whatever source (no UDP checksum; the kernel fills in that of the header)."""
    udp = struct.pack("!HHHH", 40_000, port, 8 + len(token), 0) + token
    ends = socket.inet_aton(source) + socket.inet_aton(to)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends + udp


SPOOFED = ("peer address", "own gateway", HOST_IP, WORLD_IP, "127.0.0.1", "10.254.200.2")


@pytest.mark.parametrize("source", ["own address", *SPOOFED])
async def test_a_container_speaks_only_for_itself(scene: Scene, source: str) -> None:
    """A foreign source ends at the host's end of the link; the container's own shows that the packet is a good one."""
    token = f"spoof {source}".encode()
    with scene.spaces["wide"].socket(socket.SOCK_RAW, protocol=socket.IPPROTO_RAW) as raw:
        raw.sendto(udp_packet(scene.resolve(source, "wide"), FAR_IPS[0], 8080, token), (FAR_IPS[0], 0))
    settle(scene.world.space, 8080, scene.services, "world")

    assert (token in scene.services.tokens("world")) is (source == "own address")


async def test_nobody_answers_who_asks_for_an_address(scene: Scene) -> None:
    """Neighbours are permanent at both ends; a host that answered ARP would tell of all its addresses."""
    own, gateway = (
        socket.inet_aton(scene.resolve(f"own {which}", "wide")) for which in ("address", "gateway")
    )
    with scene.spaces["wide"].socket(socket.SOCK_RAW, socket.AF_PACKET, socket.htons(ETH_P_ARP)) as raw:
        raw.bind(("eth0", ETH_P_ARP))
        mac = raw.getsockname()[4]
        who_has = bytes.fromhex("0001080006040001") + mac + own + bytes(6) + gateway
        raw.send(b"\xff" * 6 + mac + ETH_P_ARP.to_bytes(2, "big") + who_has)
        raw.settimeout(SILENCE_S)

        with pytest.raises(TimeoutError):
            raw.recv(2048)
