"""The settings of a host that permit traffic for all its containers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from depot_kit import sh
from depot_kit import stack as stack
from netns_kit import DNS_IP, FAR_IP, HOST_IP, PROTOCOLS, WORLD_IP, ask
from network_kit import APP_PORT, BACK_ENDS, HOST_PORTS, forget_empty_tables, reaches, rig, tcp, udp

from container import EgressRule, Protocol

pytestmark = pytest.mark.kernel
PUBLISHED = 7000

#: Settings, and what a container without rules then reaches.
OPENS: dict[str, tuple[dict[str, object], set[str]]] = {
    "nothing": ({}, {"resolver"}),
    "the host": ({"allow_host_access": True}, {"resolver", "host", "gateway", "published"}),
    "a network": ({"allow_networks": ("203.0.113.0/30",)}, {"resolver", "far"}),
    "an overlapping list": ({"allow_networks": ("203.0.113.0/30", "203.0.113.0/29")}, {"resolver", "far"}),
    "the pool": ({"allow_networks": ("10.254.0.0/16",)}, {"resolver", "peer", "gateway"}),
    "no resolver of ours": ({"dns_servers": (WORLD_IP,)}, set()),
    "the host as resolver": ({"dns_servers": (HOST_IP, DNS_IP)}, {"resolver"}),
    "a pool with host bits": ({"pool_network": "10.77.1.2/24"}, {"resolver"}),
}


@pytest.fixture(params=BACK_ENDS)
def firewall(request: pytest.FixtureRequest) -> Iterator[str]:
    yield str(request.param)
    forget_empty_tables()


@pytest.mark.parametrize("setting", OPENS)
async def test_a_setting_opens_for_a_container_without_rules(
    firewall: str, setting: str, tmp_path: Path, stack: Path
) -> None:
    """And only what it names."""
    settings, expected = OPENS[setting]
    async with rig(tmp_path, stack, firewall=firewall, **settings) as scene:
        app = await scene.box("app")
        peer = await scene.box("peer", ports=(tcp(PUBLISHED), udp(PUBLISHED)))
        places = {
            "resolver": (DNS_IP, 53),
            "far": (FAR_IP, 80),
            "host": (HOST_IP, HOST_PORTS[0]),
            "gateway": (app.gateway, HOST_PORTS[0]),
            "published": (HOST_IP, PUBLISHED),
            "peer": (peer.address, APP_PORT),
        }
        for protocol, kind in PROTOCOLS.items():
            found = {
                name
                for name, to in places.items()
                if ask(app.space, kind, *to, wait_s=10.0 if name in expected else 0.3)
            }
            assert found == expected, protocol


async def test_the_search_list_and_the_options_reach_a_container(tmp_path: Path, stack: Path) -> None:
    """Those of the settings here, since the host's own differ from machine to machine."""
    async with rig(
        tmp_path, stack, dns_search=("corp.example", "example"), dns_options=("ndots:2",)
    ) as scene:
        box = await scene.box("app")
        result = await box.container.run(sh("cat /etc/resolv.conf"))
    assert result.stdout.decode() == (f"nameserver {DNS_IP}\nsearch corp.example example\noptions ndots:2\n")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_ports_may_be_published_to_the_host_alone(
    firewall: str, tmp_path: Path, stack: Path, protocol: str
) -> None:
    """The host by each of its addresses, and a container with a rule for it; no other machine."""
    kind = PROTOCOLS[protocol]
    async with rig(tmp_path, stack, firewall=firewall, publish_to_host_only=True) as scene:
        await scene.box("app", ports=(tcp(PUBLISHED), udp(PUBLISHED)))
        peer = await scene.box("peer", egress=(EgressRule(Protocol.ALL, (HOST_IP,)),))
        for address in ("127.0.0.1", HOST_IP):
            assert reaches(scene.host, kind, address, PUBLISHED) == "app"
        assert reaches(peer.space, kind, HOST_IP, PUBLISHED) == "app"

        answer = ask(scene.world.space, kind, HOST_IP, PUBLISHED)
        assert not answer
        assert not scene.was_heard("app", answer)
