"""The link of a container, and that nothing else of the host changes."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from depot_kit import app, links, nothing_left, settings_for, until
from depot_kit import stack as stack
from netns_kit import FAR_IP, HOST_IP, TCP, UDP, Namespace, ask
from network_kit import APP_PORT, EVERYWHERE, Box, Rig, reaches, rig, tcp

from container import Depot
from container.network.link import GATEWAY_MAC
from container.pools import AddressLease

pytestmark = pytest.mark.kernel


@pytest_asyncio.fixture
async def scene(tmp_path: Path, stack: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, stack) as scene:
        yield scene


def ip(where: Namespace, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(where.run("ip", "-json", "-details", *words) or "[]")
    return found


def interface(box: Box) -> str:
    return f"w-{box.container.link_id}-0"


async def test_a_link_is_a_routed_pair_of_two_addresses(scene: Rig) -> None:
    """A /30, both ends up with the mtu of the settings, no bridge, eth0 the second interface inside."""
    box = await scene.box("app")
    (outer,) = ip(scene.host, "address", "show", "dev", interface(box))
    lo, inner = ip(box.space, "address")

    for end, address in ((outer, box.gateway), (inner, box.address)):
        assert [(one["local"], one["prefixlen"]) for one in end["addr_info"]] == [(address, 30)]
        assert (end["mtu"], end["operstate"]) == (1500, "UP")
        assert end["linkinfo"]["info_kind"] == "veth"
        assert "master" not in end
    assert (inner["ifname"], inner["ifindex"], lo["ifname"]) == ("eth0", 2, "lo")
    assert [(route["dst"], route.get("gateway")) for route in ip(box.space, "route")] == [
        ("default", box.gateway),
        (str(ipaddress.IPv4Network(f"{box.address}/30", strict=False)), None),
        ("224.0.0.0/4", box.gateway),
    ]


async def test_neighbours_are_permanent_at_both_ends(scene: Rig) -> None:
    """The kernel's table is one for all namespaces and overflows at 1,024 of those that are learned."""
    box = await scene.box("app", egress=(EVERYWHERE,), ports=(tcp(7300),))
    assert reaches(box.space, TCP, FAR_IP, 80) == "world"
    assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "app"
    (inner,) = ip(box.space, "link", "show", "dev", "eth0")

    (outside,) = ip(scene.host, "neighbour", "show", "dev", interface(box), "nud", "all")
    (inside,) = ip(box.space, "neighbour", "show", "dev", "eth0", "nud", "all")

    assert (outside["dst"], outside["lladdr"], outside["state"]) == (
        box.address,
        inner["address"],
        ["PERMANENT"],
    )
    assert (inside["dst"], inside["lladdr"], inside["state"]) == (box.gateway, GATEWAY_MAC, ["PERMANENT"])
    assert inner["broadcast"] == GATEWAY_MAC


async def test_the_host_s_end_is_set_before_it_is_up(scene: Rig) -> None:
    """No link-local address was ever there: a monitor sees every one that comes and goes."""
    monitor = await asyncio.create_subprocess_exec(
        "ip", "-oneline", "monitor", "address", stdout=asyncio.subprocess.PIPE
    )
    assert monitor.stdout is not None
    try:
        # its first line shows that it listens
        while True:
            scene.host.run("ip", "address", "replace", "192.0.2.77/32", "dev", "uplink2")
            scene.host.run("ip", "address", "del", "192.0.2.77/32", "dev", "uplink2")
            try:
                await asyncio.wait_for(monitor.stdout.readline(), 1.0)
                break
            except TimeoutError:
                continue
        box = await scene.box("app")
        await scene.end("app")
        scene.host.run("ip", "address", "replace", "192.0.2.78/32", "dev", "uplink2")
        seen = b""
        while b"192.0.2.78" not in seen:
            seen += await asyncio.wait_for(monitor.stdout.readline(), 20.0)
    finally:
        monitor.terminate()
        await monitor.wait()
        scene.host.run("ip", "address", "del", "192.0.2.78/32", "dev", "uplink2")

    of_link = [line for line in seen.splitlines() if interface(box).encode() in line]
    assert of_link
    assert not any(b"inet6" in line for line in of_link)  # the uplink gets its own a little later


SETTINGS = {
    "ipv6/conf/{}/disable_ipv6": "1",
    "ipv4/conf/{}/rp_filter": "1",
    "ipv4/conf/{}/route_localnet": "1",
}


async def test_settings_of_the_host_s_end(scene: Rig) -> None:
    """(docs/network.md, "Links"). Inside, IPv6 is off as well."""
    box = await scene.box("app")

    found = {name: settings_of(scene.host)[name.format(interface(box))] for name in SETTINGS}
    assert found == SETTINGS
    assert settings_of(box.space)["ipv6/conf/eth0/disable_ipv6"] == "1"


def settings_of(where: Namespace) -> dict[str, str]:
    """All of /proc/sys/net, as a thread there sees it."""

    def read() -> dict[str, str]:
        base = Path("/proc/sys/net")
        found = {}
        for directory, _, names in os.walk(base):
            for name in names:
                path = Path(directory, name)
                try:
                    found[str(path.relative_to(base))] = path.read_text().strip()
                except OSError:  # write-only, or not of this namespace
                    continue
        return found

    return where.do(read)


@dataclass(frozen=True, slots=True)
class State:
    """Whatever a manager of containers might touch."""

    settings: dict[str, str]
    links: list[str]
    addresses: str
    routes: str
    policies: str
    neighbours: list[str]
    rules: str

    @classmethod
    def of(cls, host: Namespace) -> State:
        return cls(
            settings={k: v for k, v in settings_of(host).items() if not k.endswith("nf_conntrack_count")},
            links=[one["ifname"] for one in ip(host, "link")],
            addresses=host.run("ip", "-oneline", "address"),
            routes=host.run("ip", "route", "show", "table", "all"),
            policies=host.run("ip", "rule"),
            neighbours=sorted(one["dst"] for one in ip(host, "neighbour", "show", "nud", "permanent")),
            rules=host.run("nft", "list", "ruleset"),
        )


async def test_nothing_else_of_the_host_is_touched(tmp_path: Path, stack: Path) -> None:
    """All settings, routes, policies, neighbours and rules before, while a container lives, and after."""
    host = Namespace.of("thread-self")
    # a link that came up a moment ago still gets its IPv6 address and the routes of it
    await until(
        lambda: (
            "uplink0" in (lines := host.run("ip", "-oneline", "-6", "address")) and "tentative" not in lines
        ),
        lambda: host.run("ip", "-oneline", "address"),
    )
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    host.run("nft", "add table inet theirs; add chain inet theirs c { type filter hook input priority 0; }")
    before = State.of(host)
    settings = settings_for(tmp_path, disk_limits=False)
    depot = await Depot.open(settings)
    box = await depot.create(app(stack, handle="app", ports=(tcp(7300),), egress=(EVERYWHERE,)))
    link = f"w-{box.link_id}-0"
    during = State.of(host)
    await depot.destroy("app")
    await nothing_left(settings)
    await depot.close(remove_tables=True)
    depot._shared.cgroups.remove_parents()
    after = State.of(host)
    host.run("nft", "delete table inet theirs")
    host.close()

    assert after == before
    # a router takes no redirects (ip-sysctl), so one switch is seen in no other setting
    assert {key for key in changes(before.settings, during.settings) if f"/{link}/" not in key} == {
        "ipv4/conf/uplink0/forwarding"
    }
    assert set(during.links) - set(before.links) == {link}
    assert during.policies == before.policies
    assert all(link in line for line in set(during.routes.splitlines()) ^ set(before.routes.splitlines()))
    assert during.neighbours == [box.address]
    assert during.rules.startswith(before.rules)


def changes(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


async def test_a_link_to_a_process_that_is_gone_is_refused_and_named(scene: Rig) -> None:
    """By its interface; neither the pair nor a rule is left."""
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    before = scene.rules()
    lease = AddressLease("10.254.9.0/30", "10.254.9.1", "10.254.9.2")

    with pytest.raises(OSError, match="link w-00000000001-0: No such process"):
        await scene.depot._shared.networks.attach("00000000001", process.pid, lease, (EVERYWHERE,))

    assert links() == []
    assert scene.rules() == before


async def test_a_network_rests_until_its_link_is_gone(tmp_path: Path, stack: Path) -> None:
    """Somebody still holds the namespace, so the route is there: the /30 must not be given to another."""
    async with rig(tmp_path, stack, pool_network="10.254.0.0/30") as scene:
        box = await scene.depot.create(app(stack, handle="one"))
        held = Namespace.of(box.pid)
        await scene.depot.destroy("one")
        leases = scene.depot._shared.addresses

        assert len(leases.in_use) == 1
        with pytest.raises(Exception, match="no free address: all 1 are in use or resting"):
            await scene.box("two")
        held.close()
        await until(lambda: not leases.in_use, lambda: f"links: {links()}")
        assert links() == []
        await scene.box("two")


async def test_a_network_rests_after_its_release(tmp_path: Path, stack: Path) -> None:
    """Packets of the former owner may still be on their way; others are given out meanwhile."""
    async with rig(tmp_path, stack, pool_network="10.254.0.0/29", release_delay_s=3600.0) as scene:
        first = (await scene.box("one")).address
        await scene.end("one")
        second = (await scene.box("two")).address

        assert second != first
        await until(lambda: len(scene.depot._shared.addresses.in_use) == 1, lambda: "the link did not go")
        with pytest.raises(Exception, match="no free address: all 2 are in use or resting"):
            await scene.box("three")


async def test_a_foreign_policy_is_neither_changed_nor_overridden(scene: Rig) -> None:
    """A DROP of others holds for what is forwarded; what is refused there does not come back through our rules."""
    box = await scene.box("app", egress=(EVERYWHERE,))
    assert reaches(box.space, TCP, FAR_IP, 80) == "world"
    scene.host.run(
        "nft",
        "add table inet theirs; add chain inet theirs f { type filter hook forward priority 0; policy drop; }",
    )
    theirs = scene.host.run("nft", "list", "table", "inet", "theirs")
    blocked = ask(box.space, TCP, FAR_IP, 80).name
    await box.container.net_in(tcp(7300))

    assert blocked == ""
    assert scene.host.run("nft", "list", "table", "inet", "theirs") == theirs
    # the line that the operator is told to add (docs/network.md, "When others change the firewall")
    for match in ("iifname", "oifname"):
        scene.host.run("nft", f'insert rule inet theirs f {match} "w-*" accept')
    assert reaches(box.space, TCP, FAR_IP, 80) == "world"
    assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "app"
    scene.host.run("nft", "delete table inet theirs")


async def test_a_connection_that_nobody_acknowledges_does_not_keep_the_link(scene: Rig) -> None:
    """The kernel holds the namespace for its last packets, for minutes; the pair is deleted from outside."""
    box = await scene.box("app", egress=(EVERYWHERE,))
    with box.space.socket(TCP) as mouth:
        mouth.settimeout(10.0)
        mouth.connect((FAR_IP, 80))
        scene.host.run(
            "nft",
            "add table inet theirs; add chain inet theirs f { type filter hook forward priority 0; policy drop; }",
        )
        mouth.send(b"never acknowledged")
    await scene.end("app")
    await until(lambda: not links(), lambda: f"left: {links()}")
    scene.host.run("nft", "delete table inet theirs")


async def test_a_link_passes_packets_when_create_returns(scene: Rig) -> None:
    """The kernel drops what is sent to a link that has a carrier and no queue yet; a lost SYN costs a second."""
    taken = [await scene.box(f"box-{number}") for number in range(12)]
    for box in taken:
        (link,) = ip(scene.host, "link", "show", interface(box))
        assert link["operstate"] == "UP"
        assert ask(scene.host, UDP, box.address, APP_PORT, wait_s=10.0).name == box.name
        (link,) = ip(scene.host, "-statistics", "link", "show", interface(box))
        assert link["stats64"]["tx"]["dropped"] == 0


async def test_a_link_without_its_far_end_is_no_endless_wait(scene: Rig) -> None:
    """Its carrier never comes."""
    scene.host.run("ip", "link", "add", "w-lonely", "type", "veth", "peer", "name", "w-far")
    try:
        scene.host.run("ip", "link", "set", "w-lonely", "up")
        watch = scene.depot._shared.networks._watch
        with pytest.raises(OSError, match=r"link w-lonely: passes no packet after 0\.2 s"):
            await watch.up("w-lonely", 0.2)
        assert not any(watch._rising.values())
        rising = asyncio.create_task(watch.up("w-lonely", 20.0))
        await asyncio.sleep(0.05)
        scene.host.run("ip", "link", "set", "w-far", "up")
        await rising
        await watch.up("w-lonely", 0.0)
    finally:
        scene.host.run("ip", "link", "del", "w-lonely")
    await until(lambda: "w-lonely" not in watch._up, lambda: "still known")
