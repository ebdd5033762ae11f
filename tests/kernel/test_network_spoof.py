"""Packets with a forged source to destinations that need no rule. The first of two barriers must stop them.

Name servers and `allow_networks` are accepted before the maps that are keyed by link and address. So two barriers stop such a
packet: the ingress chain of the container's own link, and the kernel's reverse path filter. The tests switch the filter off,
because with both a broken first barrier would not be seen.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio
import testhost
from depot_kit import stack as stack
from netns_kit import DNS_IP, FAR_IP, HOST_IP, WORLD_IP, settle
from network_kit import BACK_ENDS, Rig, forget_empty_tables, rig
from test_network_contract import udp_packet

pytestmark = [pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

#: Where a container without any rule may go: a name server, and a network of the setting.
OPEN = {"name server": (DNS_IP, 53), "allowed network": (FAR_IP, 8080)}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=BACK_ENDS)
async def scene(
    request: pytest.FixtureRequest, test_host: None, tmp_path_factory: pytest.TempPathFactory, stack: Path
) -> AsyncIterator[Rig]:
    before = testhost.take_picture()
    allowed = (f"{FAR_IP}/32",)
    async with rig(
        tmp_path_factory.mktemp("spoof"), stack, allow_networks=allowed, firewall=request.param
    ) as scene:
        await scene.box("peer")
        await scene.box("none")
        with ExitStack() as undo:
            for name in ("all", f"w-{scene.boxes['none'].container.link_id}-0"):
                filtered = Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter")
                undo.callback(filtered.write_text, filtered.read_text())
                filtered.write_text("0")
            yield scene
    forget_empty_tables()
    left = testhost.wait_same(before)
    assert not left, "the spoofing tests left a trace:\n" + "\n".join(left)


def source_of(scene: Rig, which: str) -> str:
    return {
        "own address": scene.boxes["none"].address,
        "peer's address": scene.boxes["peer"].address,
        "own gateway": scene.boxes["none"].gateway,
        "the host": HOST_IP,
        "the world": WORLD_IP,
        "unused address of the pool": "10.254.200.2",
    }[which]


FORGED = ("peer's address", "own gateway", "the host", "the world", "unused address of the pool")


@pytest.mark.parametrize("to", OPEN)
@pytest.mark.parametrize("which", ["own address", *FORGED])
async def test_a_forged_source_reaches_nothing_that_is_open(scene: Rig, which: str, to: str) -> None:
    """The packet with the container's own address arrives, which shows that the forged ones are otherwise good."""
    address, port = OPEN[to]
    token = f"{which} to {to}".encode()
    with scene.boxes["none"].space.socket(socket.SOCK_RAW, protocol=socket.IPPROTO_RAW) as raw:
        raw.sendto(udp_packet(source_of(scene, which), address, port, token), (address, 0))
    settle(scene.world.space, port, scene.world.services, "world")

    assert (token in scene.world.services.tokens("world")) is (which == "own address")


@pytest.mark.parametrize("scene", ["nftables"], indirect=True)
async def test_one_address_alone_passes_the_ingress_chain(scene: Rig) -> None:
    """The chain of a link has one accept, for the address of its container, and drops the rest."""
    box = scene.boxes["none"]
    table = scene.host.run("nft", "list", "table", "netdev", "garrison")
    (block,) = [part for part in table.split("chain ") if part.startswith(f"i_{box.container.link_id} ")]
    assert "policy drop" in block
    assert block.count("accept") == 1
    assert f"ip saddr {box.address} " in block
