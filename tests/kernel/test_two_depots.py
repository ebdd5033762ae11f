"""Two depots in one network namespace, as of an agent and `garrison warden`: neither harms the other, an overlap is refused."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import testhost
from depot_kit import app, close_empty, links, settings_for, until
from depot_kit import stack as stack
from netns_kit import FAR_IP, HOST_IP, TCP, UDP, ask
from network_kit import APP_PORT, EVERYWHERE, Box, Rig, reaches, rig, tcp

from container import Bandwidth, Depot, DepotBusy, DepotSettings, EgressRule, HostUnfit, Limits, Protocol
from container.claims import DIRECTORY, HostClaim, overlaps

pytestmark = pytest.mark.kernel
OTHER_POOL = "10.253.0.0/24"


def other_settings(base: Path, **changes: object) -> DepotSettings:
    """Nothing in common with the first depot's."""
    first = settings_for(base)
    testhost.own_depots.add(base / "other")
    values: dict[str, object] = {
        "depot_dir": base / "other",
        "cgroup_parent": f"{first.cgroup_parent}-other",
        "table": "other",
        "pool_network": OTHER_POOL,
        "port_first": 65100,
        "port_count": 100,
        "uid_first": 3_000_000_000,
        "uid_count": 64,
        "disk_limits": False,
        **changes,
    }
    return replace(first, **values)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(settings: DepotSettings) -> AsyncIterator[Depot]:
    depot = await Depot.open(settings)
    try:
        yield depot
    finally:
        for handle in depot.handles():
            await depot.destroy(handle)
        await nothing_left_of(settings)
        await depot.close(remove_tables=True)


async def nothing_left_of(settings: DepotSettings) -> None:
    await until(
        lambda: not any(settings.depot_dir.iterdir()), lambda: str(list(settings.depot_dir.iterdir()))
    )


@pytest_asyncio.fixture
async def scene(tmp_path: Path, stack: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, stack) as scene:
        yield scene


async def box_of(scene: Rig, depot: Depot, stack: Path, name: str, **changes: object) -> Box:
    """A container of another depot, with services; its namespace is let go by `leave`."""
    return scene.enter(await depot.create(app(stack, handle=name, **changes)))


async def reaches_the_world(box: Box) -> None:
    await until(lambda: reaches(box.space, TCP, FAR_IP, 80) == "world", lambda: f"{box.name} is cut off")


async def leave(scene: Rig, depot: Depot, name: str) -> None:
    box = scene.boxes.pop(name)
    scene.world.services.end(name)
    box.space.close()
    await depot.destroy(name)


# ---- traffic -------------------------------------------------------------------------------------------------------


async def test_each_depot_s_rules_hold_for_its_own_containers(
    scene: Rig, tmp_path: Path, stack: Path
) -> None:
    """What one depot refuses is never the other's traffic, before and after either writes everything anew."""
    async with opened(other_settings(tmp_path)) as other:
        first = await scene.box("first", egress=(EVERYWHERE,), ports=(tcp(7300),))
        closed = await scene.box("closed")
        theirs = await box_of(scene, other, stack, "theirs", egress=(EVERYWHERE,), ports=(tcp(7400),))
        shut = await box_of(scene, other, stack, "shut")

        async def all_hold() -> None:
            for box in (first, theirs):
                assert reaches(box.space, TCP, FAR_IP, 80) == "world"
                assert reaches(box.space, UDP, FAR_IP, 80) == "world"
            for box in (closed, shut):
                assert ask(box.space, TCP, FAR_IP, 80, wait_s=10.0).refused
            assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "first"
            assert reaches(scene.world.space, TCP, HOST_IP, 7400) == "theirs"
            for box in (first, closed, theirs, shut):
                assert reaches(scene.host, TCP, box.address, APP_PORT) == box.name

        await all_hold()
        for depot in (scene.depot, other):
            await depot._shared.networks._rules.change(lambda held: held, anew=True)
            await all_hold()
        for name in ("theirs", "shut"):
            await leave(scene, other, name)


async def test_containers_of_two_depots_are_strangers(scene: Rig, tmp_path: Path, stack: Path) -> None:
    """An allow of everywhere opens no address of the other's pool; a published port is reached by a rule for the host."""
    async with opened(other_settings(tmp_path)) as other:
        to_host = EgressRule(Protocol.TCP, (HOST_IP,))
        first = await scene.box("first", egress=(EVERYWHERE, to_host), ports=(tcp(7300),))
        theirs = await box_of(scene, other, stack, "theirs", egress=(EVERYWHERE, to_host), ports=(tcp(7400),))
        plain = await box_of(scene, other, stack, "plain", egress=(EVERYWHERE,))
        for one, two in ((first, theirs), (theirs, first), (plain, first)):
            assert not ask(one.space, TCP, two.address, APP_PORT)
            assert not ask(one.space, UDP, two.address, APP_PORT)
        assert reaches(first.space, TCP, HOST_IP, 7400) == "theirs"
        assert reaches(theirs.space, TCP, HOST_IP, 7300) == "first"
        assert not ask(plain.space, TCP, HOST_IP, 7300)
        for name in ("theirs", "plain"):
            await leave(scene, other, name)


async def test_a_flush_by_others_is_mended_by_both(scene: Rig, tmp_path: Path, stack: Path) -> None:
    async with opened(other_settings(tmp_path)) as other:
        first = await scene.box("first", egress=(EVERYWHERE,))
        theirs = await box_of(scene, other, stack, "theirs", egress=(EVERYWHERE,))
        scene.host.run("nft", "flush", "ruleset")
        await scene.told.wait("firewall_restored")
        for box in (first, theirs):
            await reaches_the_world(box)
        await leave(scene, other, "theirs")
        tables = scene.host.run("nft", "list", "tables")
        assert [name for name in ("garrison", "other") if f"table inet {name}\n" in tables] == [
            "garrison",
            "other",
        ]


async def test_a_depot_that_ends_takes_only_what_is_its_own(scene: Rig, tmp_path: Path, stack: Path) -> None:
    """Its tables go; forwarding stays open for the other, which is the last to close it."""
    forwarding = Path("/proc/sys/net/ipv4/conf/uplink2/forwarding")

    def is_open() -> bool:
        return bool(scene.host.do(lambda: forwarding.read_text()).strip() == "1")

    first = await scene.box("first", egress=(EVERYWHERE,))
    assert is_open()
    async with opened(other_settings(tmp_path)):
        pass
    assert is_open()
    assert "table inet other" not in scene.host.run("nft", "list", "tables")
    assert reaches(first.space, TCP, FAR_IP, 80) == "world"


async def test_forwarding_is_closed_by_the_last(tmp_path: Path, stack: Path) -> None:
    """The one that opened it may be the first to go."""
    forwarding = Path("/proc/sys/net/ipv4/conf/uplink0/forwarding")
    before = forwarding.read_text()
    assert before.strip() == "0"
    first = await Depot.open(settings_for(tmp_path, disk_limits=False))
    second = await Depot.open(other_settings(tmp_path))
    assert forwarding.read_text().strip() == "1"
    await first.close(remove_tables=True)
    assert forwarding.read_text().strip() == "1"
    assert "uplink0" in testhost.run("nft", "list", "set", "inet", "other", "s_uplinks")
    await second.close(remove_tables=True)
    assert forwarding.read_text() == before


async def test_a_restart_sweeps_nothing_of_the_other(scene: Rig, tmp_path: Path, stack: Path) -> None:
    """Links, ifbs, limits, ports and cgroups of the first stay when the second recovers, with containers and without."""
    limited = Limits(bandwidth=Bandwidth(1_000_000, 100_000))
    first = scene.enter(
        await scene.depot.create(
            app(stack, handle="first", egress=(EVERYWHERE,), ports=(tcp(7300),), limits=limited)
        )
    )
    settings = other_settings(tmp_path)
    second = await Depot.open(settings)
    await second.create(app(stack, handle="theirs"))
    await second.close()
    before = (set(links()), scene.host.run("nft", "list", "table", "inet", "garrison"))

    async with opened(settings) as again:
        assert (await again.recover()).found == ("theirs",)
        assert (set(links()), scene.host.run("nft", "list", "table", "inet", "garrison")) == before
        info = await first.container.info()
        assert (info.bandwidth_in, info.bandwidth_out) == (limited.bandwidth, limited.bandwidth)
        assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "first"
        assert reaches(first.space, TCP, FAR_IP, 80) == "world"


# ---- overlaps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"table": "garrison"}, "firewall table garrison"),
        ({"cgroup_parent": "same"}, "cgroup parent garrison-test-"),
        ({"pool_network": "10.254.7.0/24"}, r"pool network 10.254.7.0/24 \(theirs: 10.254.0.0/16\)"),
        ({"pool_network": "10.0.0.0/8"}, r"pool network 10.0.0.0/8 \(theirs: 10.254.0.0/16\)"),
        ({"port_first": 64990, "port_count": 20}, r"ports 64990-65009 \(theirs: \d+-65000\)"),
        (
            {"uid_first": 2_000_000_000, "uid_count": 10},
            r"ids 2000000000-2000655359 \(theirs: 1000000000-2073741823\)",
        ),
    ],
)
async def test_an_overlap_is_refused_and_names_the_other(
    tmp_path: Path, changes: dict[str, object], what: str
) -> None:
    first = settings_for(tmp_path, disk_limits=False)
    if changes.get("cgroup_parent") == "same":
        changes = {"cgroup_parent": first.cgroup_parent}
    depot = await Depot.open(first)
    try:
        with pytest.raises(DepotBusy, match=what) as refused:
            await Depot.open(other_settings(tmp_path, **changes))
        assert f"the depot {first.depot_dir} (pid {os.getpid()}) has: " in str(refused.value)
        assert str(refused.value).count("theirs") <= 1
        async with opened(other_settings(tmp_path)):
            pass
    finally:
        await depot.close(remove_tables=True)


async def test_a_depot_without_a_manager_counts_while_a_container_runs(tmp_path: Path, stack: Path) -> None:
    """Its addresses and ports are in use. When the last container has ended, its tables are only in the way."""
    first = settings_for(tmp_path, disk_limits=False)
    depot = await Depot.open(first)
    pid = (await depot.create(app(stack, handle="left"))).pid
    await depot.close()
    overlapping = other_settings(tmp_path, pool_network="10.254.9.0/24")

    with pytest.raises(DepotBusy, match="whose manager has ended and whose containers run"):
        await Depot.open(overlapping)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: "w-" not in testhost.run("ip", "link"), lambda: "link stays")

    async with opened(overlapping):
        assert "table inet garrison" not in testhost.run("nft", "list", "tables")
    again = await Depot.open(first)
    await again.recover()
    await close_empty(again)


async def test_a_killed_manager_s_claim_is_its_own_again(tmp_path: Path, stack: Path) -> None:
    """The lock goes with the process; a depot without containers is in nobody's way."""
    for _ in range(2):
        depot = await Depot.open(settings_for(tmp_path, disk_limits=False))
        await depot.close()
    assert len(list(DIRECTORY.glob("*.json"))) == 1
    overlapping = other_settings(tmp_path, pool_network="10.254.9.0/24")
    async with opened(overlapping):
        pass
    depot = await Depot.open(settings_for(tmp_path, disk_limits=False))
    await depot.close(remove_tables=True)
    assert list(DIRECTORY.glob("*.json")) == []


async def test_damaged_and_foreign_claims_are_in_nobody_s_way(tmp_path: Path) -> None:
    """Also one of another boot or network namespace, and one whose depot is gone."""
    settings = settings_for(tmp_path, disk_limits=False)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    claim = HostClaim(
        depot_dir=str(tmp_path / "elsewhere"), table="garrison", cgroup_parent="x", pool_network="10.254.0.0/16",
        ports=(1, 65535), ids=(1, 2**32 - 2), forwarding_file="/nonexistent", boot="another", netns=1, pid=1,
    )  # fmt: skip
    gone = msgspec.structs.replace(claim, depot_dir=str(tmp_path / "gone"))
    for name, data in (
        ("a", b""), ("b", b"{"), ("c", b"[" * 60_000), ("d", b"\xff" * 100), ("e", b'{"pool_network": 5}'),
        ("f", msgspec.json.encode(msgspec.structs.replace(claim, pool_network="no network"))),
        ("g", msgspec.json.encode(claim)), ("h", msgspec.json.encode(gone)),
    ):  # fmt: skip
        (DIRECTORY / f"{name}.json").write_bytes(data)
    (DIRECTORY / "i.json").symlink_to("/etc/passwd")
    async with opened(settings):
        left = {path.name for path in DIRECTORY.glob("?.json")}
    for path in DIRECTORY.glob("?.json"):
        path.unlink()
    assert left == {"g.json", "i.json"}


def test_overlaps_are_found_at_their_edges() -> None:
    """Ranges that touch do not overlap."""
    one = HostClaim(
        depot_dir="/a", table="a", cgroup_parent="a", pool_network="10.0.0.0/24", ports=(100, 199), ids=(1000, 1999),
        forwarding_file="", boot="b", netns=1, pid=1,
    )  # fmt: skip
    two = msgspec.structs.replace(
        one,
        depot_dir="/b",
        table="b",
        cgroup_parent="b",
        pool_network="10.0.1.0/24",
        ports=(200, 299),
        ids=(2000, 2999),
    )
    assert overlaps(one, two) == overlaps(two, one) == []
    assert len(overlaps(one, one)) == 5
    assert overlaps(one, msgspec.structs.replace(two, ports=(199, 200))) == [
        "ports 100-199 (theirs: 199-200)"
    ]
    assert overlaps(one, msgspec.structs.replace(two, ids=(1, 1000))) == ["ids 1000-1999 (theirs: 1-1000)"]


async def test_many_that_open_at_once_leave_one(tmp_path: Path) -> None:
    """The same pool, eight times: one gets it, the others are told by whom."""
    settings = [
        other_settings(
            tmp_path, depot_dir=tmp_path / f"d{n}", table=f"t{n}", cgroup_parent=f"garrison-test-{os.getpid()}-{n}",
            port_first=65100 + n * 10, port_count=10, uid_first=3_000_000_000 + n * (1 << 22), uid_count=2,
        )
        for n in range(8)
    ]  # fmt: skip
    found = await asyncio.gather(*(Depot.open(one) for one in settings), return_exceptions=True)
    depots = [one for one in found if isinstance(one, Depot)]
    refused = [one for one in found if isinstance(one, DepotBusy)]
    assert (len(depots), len(refused)) == (1, 7)
    await depots[0].close(remove_tables=True)


async def test_containers_do_not_change_the_back_end(tmp_path: Path, stack: Path) -> None:
    """A link is made for it. Without containers the rules of the former one go, so that they are in nobody's way."""
    first = settings_for(tmp_path, disk_limits=False)
    second = replace(first, firewall="iptables-nft")
    depot = await Depot.open(first)
    await depot.create(app(stack, handle="left"))
    await depot.close()
    with pytest.raises(
        HostUnfit, match="its containers run behind nftables, and iptables-nft cannot take them up"
    ):
        await Depot.open(second)

    depot = await Depot.open(first)
    await depot.recover()
    await depot.destroy("left")
    await depot.close()
    assert "table inet garrison" in testhost.run("nft", "list", "tables")
    async with opened(second) as again:
        assert "table inet garrison" not in testhost.run("nft", "list", "tables")
        await again.create(app(stack, handle="left"))
    assert "garrison" not in testhost.run("iptables-nft-save")
    testhost.forget_empty_tables()


async def test_a_depot_of_a_release_without_claims_is_taken_for_one_of_nftables(
    tmp_path: Path, stack: Path
) -> None:
    first = settings_for(tmp_path, disk_limits=False)
    depot = await Depot.open(first)
    await depot.create(app(stack, handle="left"))
    await depot.close()
    for path in DIRECTORY.glob("*.json"):
        path.unlink()
    with pytest.raises(HostUnfit, match="run behind nftables"):
        await Depot.open(replace(first, firewall="iptables-legacy"))
    depot = await Depot.open(first)
    await depot.recover()
    await close_empty(depot)


async def test_a_claim_that_a_living_manager_wrote_in_another_way_stays(tmp_path: Path) -> None:
    """Of a later release, perhaps. Without its manager a file that says nothing goes."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    strange = DIRECTORY / "strange.json"
    strange.write_text('{"later": true}')
    with strange.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        async with opened(other_settings(tmp_path)):
            assert strange.exists()
    async with opened(other_settings(tmp_path)):
        assert not strange.exists()
