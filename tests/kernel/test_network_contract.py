"""The contract of the network: who reaches whom, under which rule (docs/network.md, "Egress rules").

Real containers behind each firewall back end; a case is a row, and each row is its own test. Three containers ask:
`none` has no rule, `wide` an allow of 0.0.0.0/0, `exact` one rule for each destination that the rows name.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import testhost
from depot_kit import sh
from depot_kit import stack as stack
from netns_kit import (
    DNS_IP,
    FAR_IP,
    HOST_IP,
    METADATA_IP,
    PROTOCOLS,
    SILENCE_S,
    WORLD_IP,
    ask,
    settle,
)
from network_kit import APP_PORT, BACK_ENDS, EVERYWHERE, HOST_PORTS, Rig, forget_empty_tables, rig, tcp, udp

from container import EgressRule, PortRange, Protocol

pytestmark = [pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

ASKERS = ("none", "wide", "exact")
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
    "world": Place(FAR_IP, 8080, "world", HOST_IP, wide=True),
    "world-next-hop": Place(WORLD_IP, 8080, "world", HOST_IP, wide=True),
    "host-uplink": Place(HOST_IP, HOST_PORTS[0], "host", "own address"),
    "host-other-uplink": Place(OTHER_HOST_IP, HOST_PORTS[0], "host", "own address"),
    "host-own-gateway": Place("own gateway", HOST_PORTS[0], "host", "own address"),
    "host-peer-s-gateway": Place("peer gateway", HOST_PORTS[0], "host", "own address"),
    "peer": Place("peer address", APP_PORT, "peer", "own address"),
    "peer-published": Place(HOST_IP, PUBLISHED["peer"], "peer", "peer gateway"),
    "peer-published-own-gateway": Place("own gateway", PUBLISHED["peer"], "peer", "peer gateway"),
    "self-published": Place(HOST_IP, 0, "self", "own gateway"),
    "metadata": Place(METADATA_IP, 80, "world", HOST_IP),
}


def resolve(scene: Rig, word: str, asker: str) -> str:
    """`own gateway` and the like to the address that is meant."""
    whose, _, which = word.partition(" ")
    if not which:
        return word
    box = scene.boxes[asker if whose == "own" else whose]
    return box.address if which == "address" else box.gateway


def rules_for(scene: Rig, asker: str) -> tuple[EgressRule, ...]:
    if asker == "none":
        return ()
    if asker == "wide":
        return (EVERYWHERE,)
    return tuple(
        EgressRule(Protocol(protocol), (resolve(scene, place.address, asker),), (PortRange(port, port),))
        for place in PLACES.values()
        for port in [place.port or PUBLISHED[asker]]
        for protocol in PROTOCOLS
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=BACK_ENDS)
async def scene(
    request: pytest.FixtureRequest, test_host: None, tmp_path_factory: pytest.TempPathFactory, stack: Path
) -> AsyncIterator[Rig]:
    before = testhost.take_picture()
    async with rig(tmp_path_factory.mktemp("contract"), stack, firewall=request.param) as scene:
        for name, port in PUBLISHED.items():
            await scene.box(name, ports=(tcp(port), udp(port)))
        for asker in ASKERS:
            for rule in rules_for(scene, asker):
                await scene.boxes[asker].container.net_out(rule)
        yield scene
    forget_empty_tables()
    left = testhost.wait_same(before)
    assert not left, "the contract left a trace:\n" + "\n".join(left)


@pytest.fixture(params=ASKERS)
def asker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("to", PLACES)
async def test_a_container_reaches_what_its_rules_name_and_nothing_else(
    scene: Rig, asker: str, to: str, protocol: str
) -> None:
    """An allow of 0.0.0.0/0 is the world: not the host, not other containers, not the metadata service."""
    place = PLACES[to]
    may = asker == "exact" or (asker == "wide" and place.wide)
    service = asker if place.answers == "self" else place.answers

    answer = ask(
        scene.boxes[asker].space,
        PROTOCOLS[protocol],
        resolve(scene, place.address, asker),
        place.port or PUBLISHED[asker],
        wait_s=10.0 if may else SILENCE_S,
    )

    assert (answer.name, answer.peer) == (
        (service, resolve(scene, place.seen_as, asker)) if may else ("", "")
    )
    assert may or answer.refused, "an app that may not is told so at once, it does not hang"
    assert may or not scene.was_heard(service, answer)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_rule_for_a_port_of_the_host_opens_no_other(scene: Rig, protocol: str) -> None:
    """The exact rule names the address and the port."""
    answer = ask(scene.boxes["exact"].space, PROTOCOLS[protocol], HOST_IP, HOST_PORTS[1])

    assert answer.refused


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_there_is_no_ipv6_to_leave_by(scene: Rig, asker: str, protocol: str) -> None:
    """Else the host is reached at fe80::, whatever the rules for IPv4 say."""
    addresses = scene.boxes[asker].space.run("ip", "-6", "-oneline", "address")
    answer = ask(
        scene.boxes[asker].space, PROTOCOLS[protocol], "fe80::1%2", HOST_PORTS[0], family=socket.AF_INET6
    )

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
async def test_a_published_port_is_reached(scene: Rig, way: str, protocol: str) -> None:
    """From outside, from the host itself, and on loopback; from outside the app sees the client's own address."""
    whence, address, seen_as = FROM_OUTSIDE[way]
    where = scene.world.space if whence == "world" else scene.host

    to = resolve(scene, address, "peer")
    answer = ask(where, PROTOCOLS[protocol], to, PUBLISHED["peer"], wait_s=10.0)

    assert (answer.name, answer.peer) == ("peer", resolve(scene, seen_as, "peer"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_port_that_is_not_published_is_the_host_s(scene: Rig, protocol: str) -> None:
    """The map leads away what is in it, and nothing else."""
    answer = ask(scene.world.space, PROTOCOLS[protocol], HOST_IP, HOST_PORTS[0], wait_s=10.0)

    assert (answer.name, answer.peer) == ("host", WORLD_IP)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("port", [APP_PORT, PUBLISHED["peer"]])
async def test_the_world_does_not_reach_a_container_by_its_own_address(
    scene: Rig, protocol: str, port: int
) -> None:
    """Though it knows the way: the host forwards, and the pool is not hidden by itself."""
    address = resolve(scene, "peer address", "peer")
    answer = ask(scene.world.space, PROTOCOLS[protocol], address, port)

    assert not answer
    assert not scene.was_heard("peer", answer)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_host_reaches_a_container_by_its_own_address(scene: Rig, protocol: str) -> None:
    """The health check needs it."""
    address = resolve(scene, "peer address", "peer")
    answer = ask(scene.host, PROTOCOLS[protocol], address, APP_PORT, wait_s=10.0)

    assert (answer.name, answer.peer) == ("peer", resolve(scene, "peer gateway", "peer"))


DNS = {
    "configured-server": (DNS_IP, 53, True),
    "another-server": (FAR_IP, 53, False),
    "the-server-s-other-port": (DNS_IP, 8080, False),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", DNS)
async def test_names_are_resolved_by_the_configured_servers_without_a_rule(
    scene: Rig, case: str, protocol: str
) -> None:
    """Port 53 of those, and nothing beside it."""
    address, port, may = DNS[case]
    answer = ask(
        scene.boxes["none"].space, PROTOCOLS[protocol], address, port, wait_s=10.0 if may else SILENCE_S
    )

    assert bool(answer) is may
    assert may or answer.refused


def udp_packet(source: str, to: str, port: int, token: bytes) -> bytes:
    """An IPv4 packet with whatever source (no UDP checksum; the kernel fills in that of the header)."""
    udp = struct.pack("!HHHH", 40_000, port, 8 + len(token), 0) + token
    ends = socket.inet_aton(source) + socket.inet_aton(to)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends + udp


SPOOFED = ("peer address", "own gateway", HOST_IP, WORLD_IP, "127.0.0.1", "10.254.200.2")


@pytest.mark.parametrize("source", ["own address", *SPOOFED])
async def test_a_container_speaks_only_for_itself(scene: Rig, source: str) -> None:
    """A foreign source ends at the host's end of the link; the container's own shows that the packet is a good one."""
    token = f"spoof {source}".encode()
    with scene.boxes["wide"].space.socket(socket.SOCK_RAW, protocol=socket.IPPROTO_RAW) as raw:
        raw.sendto(udp_packet(resolve(scene, source, "wide"), FAR_IP, 8080, token), (FAR_IP, 0))
    settle(scene.world.space, 8080, scene.world.services, "world")

    assert (token in scene.world.services.tokens("world")) is (source == "own address")


async def test_nobody_answers_who_asks_for_an_address(scene: Rig) -> None:
    """Neighbours are permanent at both ends; a host that answered ARP would tell of all its addresses."""
    own, gateway = (
        socket.inet_aton(resolve(scene, f"own {which}", "wide")) for which in ("address", "gateway")
    )
    with scene.boxes["wide"].space.socket(socket.SOCK_RAW, socket.AF_PACKET, socket.htons(ETH_P_ARP)) as raw:
        raw.bind(("eth0", ETH_P_ARP))
        mac = raw.getsockname()[4]
        who_has = bytes.fromhex("0001080006040001") + mac + own + bytes(6) + gateway
        raw.send(b"\xff" * 6 + mac + ETH_P_ARP.to_bytes(2, "big") + who_has)
        raw.settimeout(SILENCE_S)

        with pytest.raises(TimeoutError):
            raw.recv(2048)


WORDS = {"world": (FAR_IP, 8080, True), "host": (HOST_IP, HOST_PORTS[0], False)}


@pytest.mark.parametrize("to", WORDS)
async def test_a_program_inside_finds_what_the_rows_above_say(scene: Rig, to: str) -> None:
    """The rows are asked by sockets that root of the host put there; an app's own is no different."""
    address, port, may = WORDS[to]
    result = await scene.boxes["wide"].container.run(sh(f"echo -n hello | nc -w 20 {address} {port}"))

    assert result.stdout.decode() == (f"hello {to} {HOST_IP}" if may else "")
    assert result.status.ok is may
    assert may or b"refused" in result.stderr
