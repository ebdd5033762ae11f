"""Egress rules of a running container: ranges, lists, ICMP, their order, shared chains, and refused rules."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import testhost
from depot_kit import sh
from depot_kit import stack as stack
from netns_kit import FAR_IP, HOST_IP, METADATA_IP, TCP, UDP, WORLD_IP, Namespace, ask
from network_kit import (
    APP_PORT,
    BACK_ENDS,
    EVERYWHERE,
    HOST_PORTS,
    Rig,
    forget_empty_tables,
    reaches,
    rig,
    tcp,
)
from static_c import build_static

from container import CreateError, EgressRule, FileEntry, PortRange, Protocol, User
from container.network import FirewallError
from container.network.policy import Ruleset

pytestmark = [pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=BACK_ENDS)
async def scene(
    request: pytest.FixtureRequest, test_host: None, tmp_path_factory: pytest.TempPathFactory, stack: Path
) -> AsyncIterator[Rig]:
    before = testhost.take_picture()
    async with rig(tmp_path_factory.mktemp("egress"), stack, firewall=request.param) as scene:
        await scene.box("peer")
        yield scene
    forget_empty_tables()
    left = testhost.wait_same(before)
    assert not left, "the egress tests left a trace:\n" + "\n".join(left)


#: Tests that read the texts of nft.
OF_NFTABLES = pytest.mark.parametrize("scene", ["nftables"], indirect=True)


def ports(*pairs: tuple[int, int]) -> tuple[PortRange, ...]:
    return tuple(PortRange(*pair) for pair in pairs)


T, U = Protocol.TCP, Protocol.UDP
RULES = {
    "an address": (EgressRule(T, (FAR_IP,)), [(TCP, FAR_IP, 80), (TCP, FAR_IP, 9000)], [(TCP, WORLD_IP, 80)]),
    "a protocol": (EgressRule(U), [(UDP, FAR_IP, 80)], [(TCP, FAR_IP, 80)]),
    "all protocols": (
        EgressRule(Protocol.ALL),
        [(UDP, FAR_IP, 80), (TCP, WORLD_IP, 80)],
        [(TCP, HOST_IP, 7200)],
    ),
    "a port": (
        EgressRule(T, (), ports((80, 80))),
        [(TCP, FAR_IP, 80)],
        [(TCP, FAR_IP, 8080), (UDP, FAR_IP, 80)],
    ),
    "a list of ports": (
        EgressRule(T, (), ports((80, 80), (9000, 9000))),
        [(TCP, FAR_IP, 80), (TCP, FAR_IP, 9000)],
        [(TCP, FAR_IP, 8080)],
    ),
    "a range of ports": (
        EgressRule(U, (), ports((8080, 8081))),
        [(UDP, FAR_IP, 8080), (UDP, FAR_IP, 8081)],
        [(UDP, FAR_IP, 80), (UDP, FAR_IP, 9000)],
    ),
    "a network": (
        EgressRule(T, ("203.0.113.64/26",)),
        [(TCP, "203.0.113.64", 80), (TCP, "203.0.113.127", 80)],
        [(TCP, "203.0.113.63", 80), (TCP, "203.0.113.128", 80)],
    ),
    "a network with host bits": (
        EgressRule(T, ("203.0.113.77/26",)),
        [(TCP, "203.0.113.64", 80)],
        [(TCP, "203.0.113.63", 80)],
    ),
    "a range of addresses": (
        EgressRule(T, ("203.0.113.7-203.0.113.9",)),
        [(TCP, "203.0.113.7", 80), (TCP, "203.0.113.9", 80)],
        [(TCP, "203.0.113.6", 80), (TCP, "203.0.113.10", 80)],
    ),
    "several networks": (
        EgressRule(T, (WORLD_IP, "203.0.113.0/31"), ports((80, 80))),
        [(TCP, WORLD_IP, 80), (TCP, FAR_IP, 80)],
        [(TCP, "203.0.113.2", 80), (TCP, WORLD_IP, 8080)],
    ),
    "a network around the host": (
        EgressRule(T, ("198.51.100.0/24",)),
        [(TCP, WORLD_IP, 80)],
        [(TCP, HOST_IP, HOST_PORTS[0])],
    ),
    "a network around the pool": (EgressRule(T, ("10.0.0.0/8",)), [], [(TCP, "peer", APP_PORT)]),
    "the pool": (EgressRule(T, ("10.254.0.0/16",)), [(TCP, "peer", APP_PORT)], [(TCP, FAR_IP, 80)]),
    "link-local addresses": (
        EgressRule(T, ("169.254.0.0/16",)),
        [(TCP, METADATA_IP, 80)],
        [(TCP, FAR_IP, 80)],
    ),
}


@pytest.mark.parametrize("what", RULES)
async def test_a_rule_opens_what_it_names(scene: Rig, what: str) -> None:
    """Given to a container that runs: closed before, open after, and closed beside it."""
    rule, opened, closed = RULES[what]
    box = await scene.box("app")

    def answers(kind: int, address: str, port: int, wait_s: float) -> bool:
        to = scene.boxes["peer"].address if address == "peer" else address
        return bool(ask(box.space, kind, to, port, wait_s=wait_s))

    assert not [one for one in opened if answers(*one, 0.3)]
    await box.container.net_out(rule)

    assert [one for one in opened if not answers(*one, 10.0)] == []
    assert [one for one in closed if answers(*one, 0.3)] == []
    await scene.end("app")


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def icmp_answers(where: Namespace, kind: int, address: str) -> bool:
    """Does somebody answer an echo (8) or a timestamp (13) request."""
    body = struct.pack("!HH12x", 7, 1)
    packet = struct.pack("!BBH", kind, 0, checksum(struct.pack("!BBH", kind, 0, 0) + body)) + body
    with where.socket(socket.SOCK_RAW, protocol=socket.IPPROTO_ICMP) as raw:
        raw.connect((address, 0))
        raw.settimeout(1.0)
        raw.send(packet)
        try:
            return raw.recv(2048)[20] in (0, 14)
        except (TimeoutError, ConnectionRefusedError, OSError):
            return False


ICMP = {
    "none": (None, set()),
    "all": (EgressRule(Protocol.ICMP), {8, 13}),
    "a type": (EgressRule(Protocol.ICMP, icmp_type=8), {8}),
    "a type and a code": (EgressRule(Protocol.ICMP, icmp_type=13, icmp_code=0), {13}),
    "another code": (EgressRule(Protocol.ICMP, icmp_type=8, icmp_code=1), set()),
    "another network": (EgressRule(Protocol.ICMP, (WORLD_IP,)), set()),
    "tcp": (EgressRule(Protocol.TCP), set()),
}


@pytest.mark.parametrize("what", ICMP)
async def test_icmp_by_type_and_code(scene: Rig, what: str) -> None:
    """Echo and timestamp requests to the world."""
    rule, types = ICMP[what]
    box = await scene.box("app", egress=() if rule is None else (rule,))

    assert {kind for kind in (8, 13) if icmp_answers(box.space, kind, FAR_IP)} == types
    assert not icmp_answers(box.space, 8, HOST_IP), "the host is closed for ICMP as well"
    await scene.end("app")


PINGS = {
    "icmp": (EgressRule(Protocol.ICMP), True),
    "echo": (ICMP["a type"][0], True),
    "tcp": (EgressRule(T), False),
}


@pytest.fixture(scope="module")
def ping(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """As iputils has it; busybox's wants a raw socket."""
    source = Path(__file__).with_name("ping.c")
    return build_static(source, tmp_path_factory.mktemp("ping") / "ping").read_bytes()


@pytest.mark.parametrize("what", PINGS)
async def test_ping_works_where_a_rule_opens_icmp(scene: Rig, what: str, ping: bytes) -> None:
    """Without a raw socket, which no job may have: by the kernel's echo socket (icmp(7))."""
    rule, is_open = PINGS[what]
    assert rule is not None
    box = await scene.box("app", egress=(rule,))
    await box.container.write_files(FileEntry("/tmp/ping", ping, mode=0o755))

    for user in User:
        for address, answered in ((FAR_IP, is_open), (HOST_IP, False), ("127.0.0.1", True)):
            done = await box.container.run(sh(f"/tmp/ping {address} {10 if answered else 1}", user=user))
            assert done.status.code == (0 if answered else 1), (user, address, done.stderr)
    groups = await box.container.run(sh("cat /proc/sys/net/ipv4/ping_group_range"))
    assert groups.stdout.split() == [b"0", b"65534"]
    await scene.end("app")


@OF_NFTABLES
async def test_a_connection_that_was_logged_is_let_through(scene: Rig) -> None:
    """A log rule is a permission; the kernel takes its text."""
    box = await scene.box("app", egress=(EgressRule(Protocol.TCP, (), ports((80, 80)), log=True),))

    assert reaches(box.space, TCP, FAR_IP, 80) == "world"
    assert 'log prefix "garrison "' in scene.rules()
    await scene.end("app")


@OF_NFTABLES
async def test_forty_at_once_share_one_chain_and_leave_none(scene: Rig) -> None:
    """The rule set is in the end what it was, and in between has one chain for them all."""
    before = scene.rules()
    egress = (EVERYWHERE, EgressRule(Protocol.TCP, ("10.254.0.0/16",)))
    boxes = await asyncio.gather(*(scene.box(f"app{n}", egress=egress, ports=(tcp(),)) for n in range(40)))
    chains = [line for line in scene.rules().splitlines() if line.strip().startswith("chain r_")]
    answers = [reaches(box.space, TCP, FAR_IP, 80) for box in boxes]
    hosts = [reaches(scene.world.space, TCP, HOST_IP, box.container.ports[0].host_port or 0) for box in boxes]

    assert len(chains) == 2  # one of the world, one of the pool
    assert answers == ["world"] * 40
    assert hosts == [box.name for box in boxes]
    await asyncio.gather(*(scene.end(box.name) for box in boxes))
    assert scene.rules() == before


@OF_NFTABLES
async def test_a_refused_change_leaves_the_others_of_its_batch(scene: Rig) -> None:
    """The kernel refuses the whole transaction; then each is tried by itself."""
    first, second = await scene.box("first", ports=(tcp(7006),)), await scene.box("second")
    networks = scene.depot._shared.networks

    def twice(held: Ruleset) -> Ruleset:
        return held.publish(second.container.link_id, tcp(7006))

    wrong, right, wrong_too = await asyncio.gather(
        networks._rules.change(twice),
        second.container.net_out(EVERYWHERE),
        networks._rules.change(twice),
        return_exceptions=True,
    )

    assert [type(one) for one in (wrong, right, wrong_too)] == [FirewallError, type(None), FirewallError]
    assert "File exists" in str(wrong)
    assert reaches(second.space, UDP, FAR_IP, 80) == "world"
    assert reaches(scene.world.space, TCP, HOST_IP, 7006) == first.name
    await scene.end("second")
    assert "r_" not in scene.rules()
    await scene.end("first")


@OF_NFTABLES
async def test_a_create_that_the_firewall_refuses_names_the_rung(scene: Rig) -> None:
    """A port that is published already: the element is never made, and nothing is left."""
    taken = await scene.box("first", ports=(tcp(7005),))
    before = scene.rules()

    with pytest.raises(CreateError, match="network: host port 7005/tcp: published already") as refused:
        await scene.box("second", egress=(EVERYWHERE,), ports=(tcp(7005),))

    assert refused.value.rung == "network"
    assert scene.rules() == before
    await scene.end(taken.name)
