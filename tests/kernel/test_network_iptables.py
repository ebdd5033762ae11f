"""What is of the iptables back end alone: flushes by others, what is seen of them, its policies, and what is left of it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import app, close_empty, settings_for
from depot_kit import stack as stack
from netns_kit import FAR_IP, HOST_IP, PROTOCOLS, TCP, UDP, WORLD_IP, settle, talk
from network_kit import (
    EVERYWHERE,
    HOST_PORTS,
    Rig,
    Told,
    forget_empty_tables,
    hears_nobody,
    reaches,
    rig,
    tcp,
    udp,
)

from container import Bandwidth, CreateError, Depot, EgressRule, Limits, PortRange, Protocol, ShapingError
from container.network.firewall import FirewallError
from container.network.firewall.backends import meant
from container.network.firewall.iptables import Iptables, xfrm
from container.network.firewall.iptables.programs import VARIANTS, Variant
from container.network.firewall.iptables.text import Chains, ours
from container.network.policy import Policy, Ruleset

pytestmark = pytest.mark.kernel
PUBLISHED = 7000
POOL = "10.254.0.0/16"
KINDS = (
    EgressRule(Protocol.ALL, ("0.0.0.0/0",)),
    EgressRule(
        Protocol.TCP, ("203.0.113.7-203.0.113.9", "10.0.0.0/8"), (PortRange(1, 65535), PortRange(80, 80))
    ),
    EgressRule(Protocol.UDP, ("203.0.113.64-203.0.113.127",), log=True),
    EgressRule(Protocol.ICMP),
    EgressRule(Protocol.ICMP, (FAR_IP,), icmp_type=8),
    EgressRule(Protocol.ICMP, (FAR_IP,), icmp_type=3, icmp_code=1),
    EgressRule(Protocol.TCP, ("169.254.0.0/16", HOST_IP, "10.254.0.0/24")),
)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    found: Variant = request.param
    return found


@pytest_asyncio.fixture
async def scene(variant: Variant, tmp_path: Path, stack: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, stack, firewall=f"iptables-{variant}") as scene:
        await scene.box("app", ports=(tcp(PUBLISHED), udp(PUBLISHED)), egress=(EVERYWHERE,))
        await scene.box("peer")
        yield scene
    assert f"src {POOL}" not in subprocess.check_output(("ip", "xfrm", "policy"), text=True)
    saved = subprocess.check_output((f"iptables-{variant}-save",), text=True)
    assert not [line for line in saved.splitlines() if "garrison" in line or "w-" in line]
    forget_empty_tables()


def run(variant: Variant, *words: str) -> None:
    subprocess.run((f"iptables-{variant}", "-w", "10", *words), check=True, capture_output=True)


def rules_of(variant: Variant) -> list[str]:
    """Without counters, and without what is of the kernel's chains."""
    saved = subprocess.check_output((f"iptables-{variant}-save",), text=True)
    return [line.split(" [")[0] for line in saved.splitlines() if "garrison" in line]


def is_open(scene: Rig) -> dict[str, bool]:
    """What the rules of `app` promise."""
    app, world = scene.boxes["app"], scene.world.space
    ways = {"out": (app.space, FAR_IP, 8080, "world"), "in": (world, HOST_IP, PUBLISHED, "app")}
    return {
        f"{way} {protocol}": reaches(where, kind, address, port) == name
        for way, (where, address, port, name) in ways.items()
        for protocol, kind in PROTOCOLS.items()
    }


# ---- what others change --------------------------------------------------------------------------------------------

FLUSHES: dict[str, list[tuple[str, ...]]] = {
    "mangle": [("-t", "mangle", "-F")],
    "everything": [("-t", table, verb) for verb in ("-F", "-X") for table in ("nat", "filter", "mangle")],
    "filter": [("-t", "filter", "-F")],
    "an accept put first": [("-t", "mangle", "-I", "garrison-from", "1", "-j", "ACCEPT")],
    "a rule of ours": [("-t", "mangle", "-D", "garrison-to", "-j", "DROP")],
    "the jump": [("-t", "filter", "-D", "FORWARD", "-j", "garrison-fwd")],
}


@pytest.mark.parametrize("what", FLUSHES)
async def test_whatever_touches_our_rules_is_undone(scene: Rig, variant: Variant, what: str) -> None:
    """The rules are to the letter what they were, and everything that was open is open."""
    before = rules_of(variant)
    for words in FLUSHES[what]:
        run(variant, *words)
    await scene.told.wait("firewall_restored")

    assert rules_of(variant) == before
    assert all(is_open(scene).values()), is_open(scene)


async def test_the_policies_are_restored_too(scene: Rig) -> None:
    subprocess.run(("ip", "xfrm", "policy", "flush"), check=True)
    await scene.told.wait("firewall_restored")
    assert xfrm.is_closed(POOL)


async def test_what_others_do_elsewhere_is_their_own_business(scene: Rig, variant: Variant) -> None:
    """Also in the same tables, as Docker and firewalld do; and our own changes are nobody's."""
    for words in (
        ("-N", "DOCKER-USER"),
        ("-A", "FORWARD", "-j", "DOCKER-USER"),
        ("-t", "nat", "-N", "DOCKER"),
    ):
        run(variant, *words)
    await scene.boxes["peer"].container.net_out(EVERYWHERE)
    await scene.end("peer")
    await asyncio.sleep(1.5)  # the legacy tables are looked at each second
    assert not scene.told.of("firewall_changed_by_others_restoring")
    assert all(is_open(scene).values()), is_open(scene)
    for words in (
        ("-D", "FORWARD", "-j", "DOCKER-USER"),
        ("-X", "DOCKER-USER"),
        ("-t", "nat", "-X", "DOCKER"),
    ):
        run(variant, *words)


async def test_a_foreign_policy_of_drop_does_no_harm(scene: Rig, variant: Variant) -> None:
    """Our accept stands before it."""
    run(variant, "-P", "FORWARD", "DROP")
    try:
        assert all(is_open(scene).values()), is_open(scene)
    finally:
        run(variant, "-P", "FORWARD", "ACCEPT")


# ---- closed after a flush ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["mangle", "everything"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_without_our_rules_a_container_reaches_nothing(
    scene: Rig, variant: Variant, protocol: str, what: str
) -> None:
    """The policies stop what has no mark. Nothing of the loop runs in between, so nobody restores before the test has looked."""
    app, kind = scene.boxes["app"], PROTOCOLS[protocol]
    with app.space.socket(kind) as established:
        established.settimeout(10.0)
        assert talk(established, b"before", (FAR_IP, 8080))
        for words in FLUSHES[what]:
            run(variant, *words)
        established.settimeout(0.3)
        assert not talk(established, b"meanwhile")
    hears_nobody(scene, kind)
    await scene.told.wait("firewall_restored")
    assert all(is_open(scene).values()), is_open(scene)


@pytest.mark.parametrize("address", ["255.255.255.255", "broadcast", "224.0.0.1", "239.1.2.3"])
@pytest.mark.parametrize("flushed", [False, True])
async def test_no_broadcast_reaches_the_host(
    scene: Rig, variant: Variant, address: str, flushed: bool
) -> None:
    app = scene.boxes["app"]
    to = app.address.rsplit(".", 1)[0] + f".{int(app.address.rsplit('.', 1)[1]) + 1}"
    with app.space.socket(UDP) as mouth:
        mouth.setsockopt(1, 6, 1)  # SO_BROADCAST
        if flushed:
            for words in FLUSHES["everything"]:
                run(variant, *words)
        mouth.sendto(b"for all", (to if address == "broadcast" else address, HOST_PORTS[0]))
    settle(scene.host, HOST_PORTS[0], scene.world.services, "host")
    assert b"for all" not in scene.world.services.tokens("host")


# ---- the rules as text ---------------------------------------------------------------------------------------------


async def test_what_the_kernel_holds_is_what_was_written(scene: Rig, variant: Variant) -> None:
    """Each kind of rule, by a restart too: else the comparison would take our own rules for changed ones."""
    box = await scene.box("all", egress=KINDS, ports=(tcp(7100),))
    await box.container.net_out(EgressRule(Protocol.TCP, (WORLD_IP,), (PortRange(1, 2),)))
    await box.container.remove_net_out(KINDS[0])
    await box.container.remove_net_in(tcp(7100))
    rules = scene.depot._shared.networks._rules
    held = rules.held
    await rules.change(lambda held: held, anew=True)
    saved = subprocess.check_output((f"iptables-{variant}-save",), text=True)
    found, wanted = ours(saved, "garrison"), Chains("garrison", held.policy).whole(held)
    for table, expected in wanted.items():
        assert found[table].chains == expected.chains
        assert found[table].jumps == expected.jumps
    await asyncio.sleep(1.5)
    assert not scene.told.of("firewall_changed_by_others_restoring")


async def test_lists_come_with_their_first_user_and_go_with_their_last(scene: Rig, variant: Variant) -> None:
    before = rules_of(variant)
    boxes = [await scene.box(f"box{n}", egress=KINDS[:1], ports=(tcp(),)) for n in range(3)]
    chains = {line.split()[0] for line in rules_of(variant) if line.startswith(":garrison-o-")}
    assert len(chains) == 1, "as `app` has it"
    for box in boxes:
        assert reaches(box.space, TCP, FAR_IP, 80) == "world"
        await scene.end(box.name)
    assert rules_of(variant) == before


async def test_a_port_is_published_once_and_a_refusal_changes_nothing(scene: Rig, variant: Variant) -> None:
    before = rules_of(variant)
    rules, peer = scene.depot._shared.networks._rules, scene.boxes["peer"].container.link_id
    with pytest.raises(FirewallError, match="port 7000/tcp: published already"):
        await rules.change(lambda held: held.publish(peer, tcp(PUBLISHED)))
    assert rules_of(variant) == before
    assert all(is_open(scene).values()), is_open(scene)


async def test_a_table_that_refuses_leaves_all_as_it_was(scene: Rig, variant: Variant) -> None:
    """Here mangle refuses, after nat has taken its part."""
    before, firewall = rules_of(variant), scene.depot._shared.networks._firewall
    assert isinstance(firewall, Iptables)
    held = scene.depot._shared.networks._rules.held
    peer = scene.boxes["peer"].container.link_id
    run(variant, "-t", "mangle", "-F", "garrison-by")  # a rule that the change is to delete is not there
    with pytest.raises(FirewallError, match=rf"iptables-{variant}-restore: "):
        await firewall.commit(
            held, held.publish(peer, tcp(7001)).remove(scene.boxes["app"].container.link_id)
        )
    assert rules_of(variant) == before


# ---- settings and lives --------------------------------------------------------------------------------------------


async def test_a_manager_takes_up_what_a_former_one_has_left(
    variant: Variant, tmp_path: Path, stack: Path
) -> None:
    """Rules and policies stay in between, and are the same afterwards."""
    settings = settings_for(tmp_path, disk_limits=False, firewall=f"iptables-{variant}")
    former = await Depot.open(settings)
    await former.create(app(stack, handle="app", egress=KINDS, ports=(tcp(7300),)))
    before = rules_of(variant)
    await former.close()
    assert rules_of(variant) == before
    assert xfrm.is_closed(POOL)
    told = Told()
    depot = await Depot.open(settings, log=told)
    await depot.recover()
    assert rules_of(variant) == before
    await close_empty(depot)
    assert rules_of(variant) == []
    assert not xfrm.is_closed(POOL)
    forget_empty_tables()


async def test_bandwidth_is_refused_by_name(scene: Rig, stack: Path) -> None:
    with pytest.raises(ShapingError, match="not offered with the iptables back end"):
        await scene.boxes["app"].container.limit_bandwidth(Bandwidth(1_000_000, 100_000))
    with pytest.raises(CreateError, match="not offered with the iptables back end"):
        await scene.depot.create(app(stack, limits=Limits(bandwidth=Bandwidth(1_000_000, 100_000))))
    assert scene.boxes["app"].container.limits.bandwidth is None


def test_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container.network.firewall.iptables.programs._PATH", "/nonexistent")
    with pytest.raises(FirewallError, match="iptables-nft-restore: not found"):
        Iptables("nft", "garrison")
    with pytest.raises(FirewallError, match="neither variant is installed"):
        meant("iptables")


async def test_removing_what_is_not_there_is_no_error(variant: Variant) -> None:
    firewall = Iptables(variant, "garrison")
    await firewall.remove()
    assert await firewall.ensure(Policy(POOL))
    assert not await firewall.ensure(Policy(POOL))
    await firewall.replace(Ruleset(Policy(POOL)), ())
    await firewall.remove()
    await firewall.remove()
    assert rules_of(variant) == []
    await firewall.close()
    forget_empty_tables()
