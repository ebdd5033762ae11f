"""A container's bandwidth limit, with real traffic both ways. A time is only ever judged from below."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import app, links, nothing_left, settings_for, until
from depot_kit import stack as stack
from netns_kit import DEADLINE_S, TCP, Namespace, ask
from network_kit import APP_PORT, EVERYWHERE, Box, Rig, rig, tcp

from container import (
    Bandwidth,
    ContainerState,
    CreateError,
    Depot,
    FirewallError,
    Limits,
    ShapingError,
    SpecError,
    snapshot,
)
from container.network import netlink, shaping
from container.network.policy import interface_of, shaper_of

pytestmark = pytest.mark.kernel

RATE = 1_000_000
LIMIT = Bandwidth(RATE, 100_000)
SENT = 2_000_000
#: What may pass at once is not waited for.
LEAST_S = (SENT - LIMIT.burst_bytes) / RATE


@pytest_asyncio.fixture
async def scene(tmp_path: Path, stack: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, stack) as scene:
        yield scene


def ifb(box: Box) -> str:
    return shaper_of(box.container.link_id)


async def seconds(from_: Namespace, to: Namespace, address: str, count: int = SENT) -> float:
    """How long it takes to send so many bytes over a new connection, until the receiver has them."""

    def move() -> float:
        with to.socket(TCP) as ear, from_.socket(TCP) as mouth:
            ear.bind((address, 0))
            ear.listen(1)
            mouth.settimeout(DEADLINE_S)
            mouth.connect(ear.getsockname())
            there, _ = ear.accept()
            with there, ThreadPoolExecutor(1) as thread:
                there.settimeout(DEADLINE_S)
                began = time.monotonic()
                sending = thread.submit(mouth.sendall, bytes(count))
                got = 0
                while got < count:
                    got += len(there.recv(1 << 18))
                sending.result()
                return time.monotonic() - began

    return await asyncio.to_thread(move)


async def outward(scene: Rig, box: Box) -> float:
    """From the container to its host."""
    return await seconds(box.space, scene.host, box.gateway)


async def inward(scene: Rig, box: Box) -> float:
    return await seconds(scene.host, box.space, box.address)


async def limits_of(box: Box) -> tuple[Bandwidth | None, Bandwidth | None]:
    info = await box.container.info()
    return info.bandwidth_in, info.bandwidth_out


async def test_each_direction_is_limited_live_both_ways_and_freed(scene: Rig) -> None:
    """Set, raised, lowered, lifted; the kernel is asked each time what is in force."""
    scene_rule = replace(EVERYWHERE, networks=("10.254.0.0/16",))
    box = await scene.box("app", egress=(scene_rule,))
    assert await limits_of(box) == (None, None)
    free = [await way(scene, box) for way in (outward, inward)]

    await box.container.limit_bandwidth(LIMIT)
    assert await limits_of(box) == (LIMIT, LIMIT)
    limited = [await way(scene, box) for way in (outward, inward)]
    assert min(limited) >= LEAST_S, limited
    assert all(slow > 3 * fast for slow, fast in zip(limited, free, strict=True)), (limited, free)

    faster = Bandwidth(8 * RATE, 200_000)
    await box.container.limit_bandwidth(faster)
    assert await limits_of(box) == (faster, faster)
    raised = [await way(scene, box) for way in (outward, inward)]
    assert min(raised) >= (SENT - faster.burst_bytes) / faster.rate_bytes_s
    assert all(now < before / 2 for now, before in zip(raised, limited, strict=True)), (raised, limited)

    await box.container.limit_bandwidth(LIMIT)
    lowered = [await way(scene, box) for way in (outward, inward)]
    assert min(lowered) >= LEAST_S, lowered

    await box.container.limit_bandwidth(None)
    assert await limits_of(box) == (None, None)
    assert links() == [interface_of(box.container.link_id)]
    freed = [await way(scene, box) for way in (outward, inward)]
    assert all(now < before / 3 for now, before in zip(freed, limited, strict=True)), (freed, limited)


async def test_a_limit_at_create_holds_from_the_first_packet(scene: Rig, stack: Path) -> None:
    made = await scene.depot.create(
        app(
            stack,
            handle="app",
            limits=Limits(bandwidth=LIMIT),
            egress=(replace(EVERYWHERE, networks=("10.254.0.0/16",)),),
        )
    )
    box = scene.enter(made)
    assert await limits_of(box) == (LIMIT, LIMIT)
    assert sorted(links()) == [interface_of(made.link_id), ifb(box)]
    assert await outward(scene, box) >= LEAST_S
    await scene.end("app")
    assert ifb(box) not in links()


async def test_a_connection_goes_on_through_every_change(scene: Rig) -> None:
    """Set, changed and lifted under it; nothing is lost."""
    box = await scene.box("app", ports=(tcp(7300),))
    with scene.world.space.socket(TCP) as mouth:
        mouth.settimeout(DEADLINE_S)
        mouth.connect(("198.51.100.1", 7300))
        for number, bandwidth in enumerate([LIMIT, Bandwidth(2 * RATE, 3000), None, LIMIT]):
            await box.container.limit_bandwidth(bandwidth)
            token = f"x{number}".encode()
            mouth.send(token)
            assert mouth.recv(2048).startswith(token)


async def test_what_is_closed_stays_closed_through_the_ifb(scene: Rig) -> None:
    """Packets pass the gate before the ifb, and the rules after it: a spoofed source and a closed address do not come through."""
    box, other = await scene.box("app", egress=(EVERYWHERE,)), await scene.box("other")
    await box.container.limit_bandwidth(LIMIT)

    assert ask(box.space, TCP, "203.0.113.1", 80, wait_s=10.0).name == "world"
    assert not ask(box.space, TCP, other.address, APP_PORT)
    assert ask(box.space, TCP, "198.51.100.1", 7200).refused
    box.space.run("ip", "address", "add", "10.254.99.2/32", "dev", "eth0")
    assert not ask(box.space, TCP, "203.0.113.1", 80, source="10.254.99.2")
    scene.host.run("nft", "delete table netdev garrison")
    await scene.told.wait("firewall_restored")
    assert "fwd to" in scene.rules()
    assert ask(box.space, TCP, "203.0.113.1", 80, wait_s=10.0).name == "world"


async def test_without_its_ifb_a_limited_container_is_closed(scene: Rig) -> None:
    """Somebody has deleted it: unlimited it must not be. To set the limit again opens it."""
    box = await scene.box("app", egress=(EVERYWHERE,))
    await box.container.limit_bandwidth(LIMIT)
    scene.host.run("ip", "link", "del", ifb(box))

    assert not ask(box.space, TCP, "203.0.113.1", 80)
    scene.host.run("nft", "flush", "ruleset")
    await scene.told.wait("firewall_restored")
    assert not ask(box.space, TCP, "203.0.113.1", 80)
    await box.container.limit_bandwidth(LIMIT)
    assert ask(box.space, TCP, "203.0.113.1", 80, wait_s=10.0).name == "world"
    assert await limits_of(box) == (LIMIT, LIMIT)


@pytest.mark.parametrize(
    "bandwidth",
    [
        Bandwidth(1, 1514),
        Bandwidth(100, 1_000_000),  # hours of burst: more ticks than the kernel shows
        Bandwidth(12_345_678, 1_234_567),
        Bandwidth(2**32 - 1, 2**32 - 1),
        Bandwidth(10**10, 10**6),
    ],
)
async def test_what_is_set_is_what_is_read(scene: Rig, bandwidth: Bandwidth) -> None:
    box = await scene.box("app")
    await box.container.limit_bandwidth(bandwidth)
    assert await limits_of(box) == (bandwidth, bandwidth)


async def test_what_others_have_set_is_reported(scene: Rig) -> None:
    """The kernel's figures, not those that were asked for."""
    box = await scene.box("app")
    await box.container.limit_bandwidth(LIMIT)
    scene.host.run(
        "tc", "qdisc", "change", "dev", ifb(box), "handle", "1:", "root",
        "tbf", "rate", "4mbit", "burst", "20000", "limit", "100000",
    )  # fmt: skip
    inbound, outbound = await limits_of(box)
    assert inbound == LIMIT
    assert outbound is not None
    assert outbound.rate_bytes_s == 500_000
    assert abs(outbound.burst_bytes - 20_000) <= 1


async def test_traffic_is_counted_as_the_container_sees_it(scene: Rig) -> None:
    box = await scene.box("app")
    before = (await box.container.info()).traffic
    await seconds(scene.host, box.space, box.address, 300_000)
    after = (await box.container.info()).traffic
    assert before is not None
    assert after is not None
    assert 300_000 <= after.rx_bytes - before.rx_bytes < 600_000
    assert 0 < after.tx_bytes - before.tx_bytes < 200_000
    assert after.rx_packets > before.rx_packets
    assert after.tx_packets > before.tx_packets


async def test_refusals_leave_what_was_there(scene: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst below one packet; a kernel without one of the two; a firewall that refuses."""
    box = await scene.box("app", egress=(EVERYWHERE,))
    small = Bandwidth(RATE, 1513)
    with pytest.raises(
        SpecError, match=r"bandwidth\.burst_bytes: expected at least 1514, one packet, got 1513"
    ):
        await box.container.limit_bandwidth(small)

    def lacks(number: int, kind: int) -> Callable[..., bytes]:
        real = netlink.answered

        def answered(asker: socket.socket, asked: int, flags: int, body: bytes, what: str) -> bytes:
            if asked == kind:
                raise OSError(number, "unknown")
            return real(asker, asked, flags, body, what)

        return answered

    for number, kind, named in ((95, 16, "CONFIG_IFB"), (2, 36, "CONFIG_NET_SCH_TBF")):
        with monkeypatch.context() as patch:
            patch.setattr(shaping, "answered", lacks(number, kind))
            with pytest.raises(ShapingError, match=named):
                await box.container.limit_bandwidth(LIMIT)
        assert links() == [interface_of(box.container.link_id)]
        assert box.container.limits.bandwidth is None

    async def refuse(*_: object) -> None:
        raise FirewallError("refused")

    firewall = scene.depot._shared.networks._firewall
    for former in (None, LIMIT):
        await box.container.limit_bandwidth(former)
        with monkeypatch.context() as patch:
            patch.setattr(firewall, "commit", refuse)
            patch.setattr(firewall, "replace", refuse)
            with pytest.raises(FirewallError):
                await box.container.limit_bandwidth(Bandwidth(RATE, 5000) if former is None else None)
        assert await limits_of(box) == (former, former)
        assert box.container.limits.bandwidth == former
    assert ask(box.space, TCP, "203.0.113.1", 80, wait_s=10.0).name == "world"


async def test_a_refused_limit_at_create_leaves_nothing(
    scene: Rig, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match=r"bandwidth\.burst_bytes"):
        await scene.depot.create(app(stack, handle="app", limits=Limits(bandwidth=Bandwidth(RATE, 100))))

    def refused(*_: object) -> None:
        raise ShapingError("bandwidth: no")

    monkeypatch.setattr(shaping, "_set_up", refused)  # the ifb stands by then
    with pytest.raises(CreateError, match="network: bandwidth: no"):
        await scene.depot.create(app(stack, handle="app", limits=Limits(bandwidth=LIMIT)))
    await nothing_left(scene.depot.settings)


async def test_limits_and_a_destroy_at_once_leave_no_ifb(scene: Rig, stack: Path) -> None:
    """In every order in which they may meet."""
    for number in range(6):
        box = await scene.depot.create(app(stack, handle=f"c{number}"))
        changes = [asyncio.create_task(box.limit_bandwidth(Bandwidth(RATE, 2000 + one))) for one in range(3)]
        await asyncio.sleep(0.002 * number)
        await box.destroy()
        await asyncio.gather(*changes, return_exceptions=True)
        assert box.state is ContainerState.DESTROYED
    await until(lambda: not links(), lambda: f"left: {links()}")


async def test_a_restart_keeps_the_limit(tmp_path: Path, stack: Path) -> None:
    """What is in force stays so; what somebody took away meanwhile is set again; what nobody wants is removed."""
    settings = settings_for(tmp_path, disk_limits=False)
    depot = await Depot.open(settings)
    for handle in ("kept", "lost", "free", "half"):
        box = await depot.create(app(stack, handle=handle))
        if handle != "free":
            await box.limit_bandwidth(LIMIT)
    names = {handle: depot.find(handle).link_id for handle in depot.handles()}
    await depot.close()
    host = Namespace.of("thread-self")
    index = socket.if_nametoindex(shaper_of(names["kept"]))
    host.run("ip", "link", "del", shaper_of(names["lost"]))
    host.run("tc", "qdisc", "del", "dev", interface_of(names["lost"]), "root")
    # as a manager leaves it that is killed before it has written the limit down
    directory = settings.depot_dir / "half"
    found = snapshot.read(directory)
    snapshot.write(directory, type(found)(**{
        **{name: getattr(found, name) for name in found.__struct_fields__}, "limits": replace(found.limits, bandwidth=None),
    }))  # fmt: skip

    depot = await Depot.open(settings)
    recovery = await depot.recover()
    assert sorted(recovery.found) == ["free", "half", "kept", "lost"]
    for handle in recovery.found:
        info = await depot.find(handle).info()
        wanted = LIMIT if handle in ("kept", "lost") else None
        assert (info.bandwidth_in, info.bandwidth_out) == (wanted, wanted), handle
        assert depot.find(handle).limits.bandwidth == wanted
    assert socket.if_nametoindex(shaper_of(names["kept"])) == index
    with ExitStack() as undo:
        undo.callback(host.close)
        space = Namespace.of(depot.find("kept").pid)
        undo.callback(space.close)
        address = depot.find("kept").address
        assert address is not None
        assert await seconds(host, space, address) >= LEAST_S
    for handle in depot.handles():
        await depot.destroy(handle)
    await nothing_left(settings)
    await depot.close(remove_tables=True)
    depot._shared.cgroups.remove_parents()


KEPT = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {kernel!r}]
from depot_kit import app, settings_for
from container import Bandwidth, Depot, Limits

async def main():
    depot = await Depot.open(settings_for(Path(sys.argv[1]), disk_limits=False, cgroup_parent=sys.argv[3]))
    await depot.create(app(Path(sys.argv[2]), handle="box", limits=Limits(bandwidth=Bandwidth(1000000, 5000))))
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_ifb_of_a_container_that_died_with_its_manager_is_removed(
    tmp_path: Path, stack: Path
) -> None:
    """Killed, both of them; the next manager removes what the kernel does not take back."""
    here = Path(__file__).parent
    settings = settings_for(tmp_path, disk_limits=False)
    program = KEPT.format(tests=str(here.parent), kernel=str(here))
    manager = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        str(tmp_path),
        str(stack),
        settings.cgroup_parent,
        stdout=asyncio.subprocess.PIPE,
    )
    assert manager.stdout is not None
    assert await manager.stdout.readline() == b"ready\n"
    manager.kill()
    await manager.wait()
    found = snapshot.read(settings.depot_dir / "box")
    os.kill(found.pid, signal.SIGKILL)
    ifbs = [shaper_of(found.link_id)]
    await until(lambda: links() == ifbs, lambda: f"links: {links()}")

    depot = await Depot.open(settings)
    assert (await depot.recover()).removed == ("box",)
    assert links() == []
    await nothing_left(settings)
    await depot.close(remove_tables=True)
    depot._shared.cgroups.remove_parents()
