"""The host forwards packets only for its containers, and does not disturb other forwarding."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import app, nothing_left, settings_for
from depot_kit import stack as stack
from netns_kit import FAR_IP, HOST_IP, PROTOCOLS, TCP, UDP, WORLD_IP, Namespace, _move, ask, settle
from network_kit import BACK_ENDS, EVERYWHERE, Rig, Told, forget_empty_tables, reaches, rig, tcp, udp

from container import Depot
from container.network import forwarding

pytestmark = pytest.mark.kernel
PORT = 7200
LAN_IP, LAN_HOST_IP = "10.99.0.2", "10.99.0.1"
CONF = Path("/proc/sys/net/ipv4/conf")


@pytest.fixture(autouse=True)
def not_a_router(test_host: None) -> Iterator[None]:
    """The test host as most hosts are before anything is installed; afterwards it must be so again."""
    switch = Path("/proc/sys/net/ipv4/ip_forward")
    for value in "10":  # the kernel copies a change, and nothing else
        switch.write_text(value)
    yield
    on = [path.parent.name for path in CONF.glob("*/forwarding") if path.read_text().strip() == "1"]
    switch.write_text("0")
    assert on == [], "forwarding stayed on"


@pytest_asyncio.fixture
async def scene(request: pytest.FixtureRequest, tmp_path: Path, stack: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, stack, firewall=getattr(request, "param", "nftables")) as scene:
        yield scene
    forget_empty_tables()


ON_ALL = pytest.mark.parametrize("scene", BACK_ENDS, indirect=True)


@dataclass(frozen=True, slots=True)
class Lan:
    """A machine at a third link of the host's, with the host for its default route, and what it serves."""

    scene: Rig
    space: Namespace

    def hears(self, sender: Namespace, kind: int, address: str = LAN_IP) -> bool:
        """Whether it gets what is sent, answer or not."""
        return self._is_heard("lan", self.space, ask(sender, kind, address, PORT).token)

    def _is_heard(self, name: str, where: Namespace, token: bytes) -> bool:
        settle(where, PORT if name == "lan" else 8080, self.scene.world.services, name)
        return token in self.scene.world.services.tokens(name)

    def is_heard_by_the_world(self, kind: int) -> bool:
        token = ask(self.space, kind, FAR_IP, 8080).token
        return self._is_heard("world", self.scene.world.space, token)


@pytest.fixture
def lan(scene: Rig) -> Iterator[Lan]:
    with ExitStack() as undo:
        space = Namespace.new()
        undo.callback(space.close)
        scene.host.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
        undo.callback(scene.host.run, "ip", "link", "del", "lan0")
        scene.host.do(lambda: _move("lan1", space))
        scene.host.run("ip", "address", "add", f"{LAN_HOST_IP}/24", "dev", "lan0")
        scene.host.run("ip", "link", "set", "lan0", "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{LAN_IP}/24", "dev", "lan1"),
            ("link", "set", "lan1", "up"),
            ("route", "add", "default", "via", LAN_HOST_IP),
        ):
            space.run("ip", *words)
        undo.callback(scene.world.services.end, "lan")
        for kind in (TCP, UDP):
            scene.world.services.add("lan", space, kind, PORT)
        yield Lan(scene, space)


def is_on(interface: str) -> bool:
    return (CONF / interface / "forwarding").read_text().strip() == "1"


async def serve_containers(scene: Rig, name: str, port: int) -> None:
    """All that a container needs of the host's forwarding."""
    box = scene.boxes.get(name) or await scene.box(name, egress=(EVERYWHERE,), ports=(tcp(port), udp(port)))
    for kind in (TCP, UDP):
        assert reaches(box.space, kind, FAR_IP, 8080) == "world"
        assert reaches(scene.world.space, kind, HOST_IP, port) == name


@ON_ALL
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_stranger_does_not_pass(scene: Rig, lan: Lan, protocol: str) -> None:
    """Neither from a third link to the uplink nor the other way, while containers do."""
    await serve_containers(scene, "app", 7300)

    assert not lan.hears(scene.world.space, PROTOCOLS[protocol])
    assert not lan.is_heard_by_the_world(PROTOCOLS[protocol])
    assert (is_on("all"), is_on("default"), is_on("lan0"), is_on("uplink2")) == (False, False, False, True)


@ON_ALL
async def test_one_that_speaks_to_a_container_by_its_address_does_not_pass(scene: Rig, lan: Lan) -> None:
    """The pool is nobody's network but the host's, from the third link and from the uplink."""
    box = await scene.box("app", egress=(EVERYWHERE,))
    scene.world.space.run("ip", "route", "add", f"{box.address}/32", "via", HOST_IP)
    for sender in (lan.space, scene.world.space):
        assert not scene.was_heard("app", ask(sender, UDP, box.address, 7100))


@ON_ALL
async def test_a_router_that_begins_later_is_not_stood_in_the_way(scene: Rig, lan: Lan) -> None:
    """One that switches ip_forward on, as Docker and libvirt do, routes; once it is gone nobody passes again."""
    await serve_containers(scene, "app", 7300)
    before = len(scene.told.of("forwarding_set"))

    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    told = await scene.told.wait("forwarding_set", before + 1)
    assert told["by"] == "others: ip_forward is on"
    for kind in (TCP, UDP):
        assert reaches(scene.world.space, kind, LAN_IP, PORT) == "lan"
    await serve_containers(scene, "app", 7300)
    await serve_containers(scene, "later", 7301)

    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    told = await scene.told.wait("forwarding_set", before + 2)
    assert (told["by"], "uplink2" in told["opened"]) == ("us", True)
    await serve_containers(scene, "app", 7300)
    assert not lan.hears(scene.world.space, UDP)
    assert not lan.is_heard_by_the_world(UDP)


async def test_a_router_that_ends_after_us_keeps_what_it_opened(scene: Rig) -> None:
    """What it switched on is its own: it is not switched off when our last container goes."""
    await serve_containers(scene, "app", 7300)
    before = len(scene.told.of("forwarding_set"))
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    await scene.told.wait("forwarding_set", before + 1)

    await scene.depot._shared.networks._forwarding.give_back()
    assert (is_on("all"), is_on("uplink2")) == (True, True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    await scene.told.wait("forwarding_set", before + 2)


async def test_an_uplink_that_comes_later_is_opened(scene: Rig, lan: Lan) -> None:
    """A route that somebody sets leads to peers; when it goes its interface is closed again."""
    before = len(scene.told.of("forwarding_set"))
    scene.host.run("ip", "route", "add", "203.0.114.0/24", "via", LAN_IP)
    told = await scene.told.wait("forwarding_set", before + 1)
    assert "lan0" in told["opened"]
    assert is_on("lan0")
    box = await scene.box("app", egress=(EVERYWHERE,))
    assert reaches(box.space, TCP, LAN_IP, PORT) == "lan"
    assert not lan.is_heard_by_the_world(UDP)

    scene.host.run("ip", "route", "del", "203.0.114.0/24")
    told = await scene.told.wait("forwarding_set", before + 2)
    assert told["closed"] == ["lan0"]
    assert not is_on("lan0")


async def test_what_cannot_be_switched_is_tried_again(
    scene: Rig, lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that refuses costs no container anything but time."""

    def refuse(wanted: Mapping[str, str]) -> None:
        if wanted:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    before = len(scene.told.of("forwarding_set"))
    with monkeypatch.context() as broken:
        broken.setattr(forwarding, "_switch", refuse)
        scene.host.run("ip", "route", "add", "203.0.114.0/24", "via", LAN_IP)
        told = await scene.told.wait("forwarding_not_set_retrying")
        assert "Read-only file system" in told["error"]
        assert not is_on("lan0")
    told = await scene.told.wait("forwarding_set", before + 1)
    assert is_on("lan0")
    scene.host.run("ip", "route", "del", "203.0.114.0/24")
    await scene.told.wait("forwarding_set", before + 2)


async def test_a_manager_takes_up_containers_while_nothing_can_be_switched(
    tmp_path: Path, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins all the same: their lives are worth more than their network."""
    settings, told = settings_for(tmp_path, disk_limits=False), Told()
    first = await Depot.open(settings)
    await first.create(app(stack, handle="app"))
    await first.close()
    (CONF / "uplink0/forwarding").write_text("0")

    def refuse(wanted: Mapping[str, str]) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as broken:
        broken.setattr(forwarding, "_switch", refuse)
        second = await Depot.open(settings, log=told)
        assert (await second.recover()).found == ("app",)
        await told.wait("forwarding_not_set_retrying")
    await told.wait("forwarding_set")
    assert is_on("uplink0")
    await second.destroy("app")
    await nothing_left(settings)
    await second.close(remove_tables=True)
    second._shared.cgroups.remove_parents()


async def test_a_published_port_of_a_router_begun_without_us_is_served(
    tmp_path: Path, stack: Path, scene: Rig, lan: Lan
) -> None:
    """The guard that a manager left behind lets conversations and published ports of others pass."""
    await serve_containers(scene, "app", 7300)
    scene.depot._shared.networks._forwarding.stop_following()
    scene.host.run("nft", "add table ip theirs")
    chain = "type nat hook prerouting priority dstnat"
    scene.host.run("nft", f"add chain ip theirs pre {{ {chain}; }}")
    scene.host.run("nft", f"add rule ip theirs pre tcp dport 7999 dnat to {LAN_IP}:{PORT}")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    try:
        assert reaches(scene.world.space, TCP, HOST_IP, 7999) == "lan"
        assert reaches(lan.space, TCP, WORLD_IP, 8080) == "world"
    finally:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
        scene.host.run("nft", "delete table ip theirs")


async def test_what_a_former_manager_opened_is_closed_by_the_last(tmp_path: Path, stack: Path) -> None:
    """It is written down; what an operator had switched on stays so."""
    host = Namespace.of("thread-self")
    host.run("ip", "link", "add", "theirs0", "type", "veth", "peer", "name", "theirs1")
    host.run("ip", "address", "add", "198.18.0.1/24", "dev", "theirs0")
    for end in ("theirs0", "theirs1"):
        host.run("ip", "link", "set", end, "up")
    host.run("ip", "route", "add", "198.18.1.0/24", "via", "198.18.0.2")
    (CONF / "theirs0/forwarding").write_text("1")
    settings = settings_for(tmp_path, disk_limits=False)
    try:
        first = await Depot.open(settings)
        await first.create(app(stack, handle="app"))
        await first.close()
        assert (is_on("uplink0"), is_on("theirs0"), is_on("all")) == (True, True, False)

        second = await Depot.open(settings)
        await second.recover()
        guarded = host.run("nft", "list", "set", "inet", "garrison", "s_uplinks")
        assert ("uplink0" in guarded, "theirs0" in guarded) == (True, False)
        await second.destroy("app")
        await nothing_left(settings)
        await second.close(remove_tables=True)
        second._shared.cgroups.remove_parents()
        assert (is_on("uplink0"), is_on("theirs0"), is_on("all")) == (False, True, False)
        assert not (tmp_path / "depot.forwarding").exists()
    finally:
        host.run("ip", "link", "del", "theirs0")
        host.close()


async def test_uplinks_may_be_named(tmp_path: Path, stack: Path) -> None:
    """Then they alone are opened, whatever routes say; an address of the host's names its interface."""
    for changes, opened in (
        ({"uplinks": ("uplink2",)}, {"uplink2"}),
        ({"reached_at": HOST_IP}, {"uplink0", "uplink2"}),
    ):
        async with rig(tmp_path, stack, **changes) as scene:
            told = await scene.told.wait("forwarding_set")
            assert set(told["opened"]) == opened
