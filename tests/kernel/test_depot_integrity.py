"""What others remove from a living container: it is mended, or the container is reported as broken, within a second."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import app, close_empty, settings_for, sh, until
from depot_kit import depot as depot
from depot_kit import stack as stack
from netns_kit import FAR_IP, HOST_IP, TCP, ask
from network_kit import APP_PORT, EVERYWHERE, Box, Rig, Told, reaches, rig, tcp

from container import Container, ContainerState, Depot, EventKind
from container.cgroups import CgroupSet, strays
from container.integrity import REMOVED
from container.network.follower import DELETED, RENAMED, REPLACED

pytestmark = pytest.mark.kernel
NOTICED_S = 1.0


@pytest_asyncio.fixture
async def scene(tmp_path: Path, stack: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, stack) as scene:
        yield scene


def interface(box: Box) -> str:
    return f"w-{box.container.link_id}-0"


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    """What is noticed late is not noticed; twice the time is for a busy machine."""
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < 2 * limit_s


async def is_broken(container: Container, piece: str) -> None:
    """Noticed in time, said once, and what it is can be read."""
    with within(NOTICED_S):
        await until(lambda: bool(container.broken), lambda: "not noticed")
    assert container.broken == piece
    assert container.events.kinds.count(EventKind.BROKEN) == 1
    assert container.state is ContainerState.ACTIVE
    assert EventKind.BROKEN in (await container.info()).events


# ---- links ---------------------------------------------------------------------------------------------------------


async def test_a_deleted_link_breaks_its_container_alone(scene: Rig) -> None:
    """Subscribers get the event, jobs run on, and the container can be destroyed; its address comes into use again."""
    box, other = await scene.box("app", ports=(tcp(7300),)), await scene.box("other")
    events = box.container.events.subscribe()
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)

    scene.host.run("ip", "link", "del", interface(box))

    await is_broken(box.container, DELETED)
    assert scene.told.of("container_broken") == [{"link": box.container.link_id, "why": DELETED}]
    assert (await waiting).kind is EventKind.BROKEN
    assert (await box.container.run(sh("echo here"))).stdout == b"here\n"
    assert not other.container.broken
    assert ask(scene.host, TCP, other.address, APP_PORT).name == "other"
    await events.aclose()
    await scene.end("app")
    (left,) = scene.depot._shared.networks.follower._followed.values()
    assert left.link.interface == interface(other)


async def test_a_foreign_link_in_its_place_is_no_link_of_ours(scene: Rig, tmp_path: Path) -> None:
    """Of the same name, made in the moment of the deletion. Destroying the container leaves no address in use."""
    box = await scene.box("app")
    name = interface(box)
    batch = tmp_path / "batch"
    batch.write_text(f"link del {name}\nlink add {name} type veth peer name w-peer\nlink set {name} up\n")
    scene.host.run("ip", "-batch", str(batch))
    try:
        await is_broken(box.container, DELETED)
    finally:
        scene.host.run("ip", "link", "del", name)


async def test_a_renamed_link_is_lost(scene: Rig) -> None:
    """The firewall knows links by name."""
    box = await scene.box("app")
    scene.host.run("ip", "link", "set", interface(box), "down")
    scene.host.run("ip", "link", "set", interface(box), "name", "theirs")
    try:
        await is_broken(box.container, RENAMED)
    finally:
        scene.host.run("ip", "link", "del", "theirs")


@pytest.mark.parametrize(
    "words", [("link", "set", "{}", "down"), ("address", "flush", "dev", "{}")], ids=["down", "address"]
)
async def test_a_link_that_lost_its_state_or_address_works_again(scene: Rig, words: tuple[str, ...]) -> None:
    """With its neighbour and its route: both ways, and by its published port."""
    box = await scene.box("app", ports=(tcp(7300),), egress=(EVERYWHERE,))
    with within(NOTICED_S):
        scene.host.run("ip", *(word.format(interface(box)) for word in words))
        await scene.told.wait("link_set_up_again")
        await until(lambda: _is_whole(scene, box), lambda: scene.host.run("ip", "address"))
    link = box.container._parts.link
    assert link is not None
    await scene.depot._shared.networks.up(link)
    assert ask(scene.host, TCP, box.address, APP_PORT, wait_s=10.0).name == "app"
    assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "app"
    assert reaches(box.space, TCP, FAR_IP, 80) == "world"
    assert not box.container.broken


def _is_whole(scene: Rig, box: Box) -> bool:
    shown = scene.host.run("ip", "address", "show", "dev", interface(box))
    return f"inet {box.gateway}/30" in shown and "state UP" in shown


async def test_lost_reports_lose_no_damage(scene: Rig) -> None:
    """The kernel drops reports when the socket's buffer is full; then every link is looked at."""
    gone, down, whole = [await scene.box(name) for name in ("gone", "down", "whole")]
    follower = scene.depot._shared.networks.follower
    seen, scene.depot._shared.networks._watch._seen = follower.on_report, lambda report: None
    scene.host.run("ip", "link", "del", interface(gone))
    scene.host.run("ip", "link", "set", interface(down), "down")
    await asyncio.sleep(0.2)
    assert not gone.container.broken
    scene.depot._shared.networks._watch._seen = seen

    follower.on_report(None)

    await is_broken(gone.container, DELETED)
    await until(lambda: _is_whole(scene, down), lambda: scene.host.run("ip", "address"))
    assert not whole.container.broken


async def test_the_end_of_a_container_is_no_damage(scene: Rig) -> None:
    """Its link goes with it, whoever killed it."""
    box = await scene.box("app")
    scene.world.services.end("app")
    box.space.close()
    os.kill(box.container.pid, 9)
    await box.container.wait_dead()
    await until(lambda: interface(box) not in scene.host.run("ip", "link"), lambda: "link stays")
    assert not box.container.broken
    assert scene.told.of("container_broken") == []
    assert EventKind.BROKEN not in box.container.events.kinds
    del scene.boxes["app"]
    await scene.depot.destroy("app")


async def test_damage_while_no_manager_ran_is_found(tmp_path: Path, stack: Path) -> None:
    """A link that is gone, one in whose place another stands, one that is down; the fourth is whole."""
    settings = settings_for(tmp_path, disk_limits=False)
    former = await Depot.open(settings)
    names = {}
    for name in ("gone", "foreign", "down", "whole"):
        names[name] = f"w-{(await former.create(app(stack, handle=name))).link_id}-0"
    await former.close()

    def ip(*words: str) -> None:
        subprocess.run(("ip", *words), check=True)

    ip("link", "del", names["gone"])
    ip("link", "del", names["foreign"])
    ip("link", "add", names["foreign"], "type", "veth", "peer", "name", "w-peer")
    ip("link", "set", names["down"], "down")

    depot = await Depot.open(settings)
    try:
        await depot.recover()
        await is_broken(depot.find("gone"), DELETED)
        await is_broken(depot.find("foreign"), REPLACED)
        await until(
            lambda: "state UP" in subprocess.check_output(("ip", "link", "show", names["down"]), text=True),
            lambda: "still down",
        )
        assert not depot.find("down").broken
        assert not depot.find("whole").broken
    finally:
        ip("link", "del", names["foreign"])
        await close_empty(depot)


# ---- cgroups -------------------------------------------------------------------------------------------------------


def membership(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def roots(container: Container) -> list[Path]:
    """The directories of the hierarchies above the container's, and what it has in each."""
    return [file.parents[3] for file in container._body.cgroup.init_files]


def move_out(container: Container, *pids: int) -> None:
    for root in roots(container):
        for pid in pids:
            (root / "cgroup.procs").write_text(str(pid))


def all_pids(container: Container) -> list[int]:
    found, waiting = [], [container.pid]
    while waiting:
        found.append(pid := waiting.pop())
        waiting += strays.children(pid)
    return found


async def with_processes(depot: Depot, stack: Path, count: int = 4) -> Container:
    """A shell with a child that has a child, and so on."""
    container = await depot.create(app(stack))
    inner = "sleep 1000"
    for _ in range(count - 2):
        inner = f"sh -c '{inner}; true'" if "'" not in inner else f'sh -c "{inner}; true"'
    await container.spawn(sh(f"{inner}; true"))
    await until(lambda: len(all_pids(container)) >= 3, lambda: f"{all_pids(container)}")
    return container


@pytest.mark.parametrize("which", ["pid 1", "a job", "a child of a job", "all"])
async def test_processes_that_were_moved_out_are_put_back(depot: Depot, stack: Path, which: str) -> None:
    container, other = await with_processes(depot, stack), await with_processes(depot, stack)
    pids = all_pids(container)
    chosen = {"pid 1": pids[:1], "a job": pids[1:2], "a child of a job": pids[2:3], "all": pids}[which]
    before = {pid: membership(pid) for pid in pids}
    with within(NOTICED_S):
        move_out(container, *chosen)
        assert all(membership(pid) != before[pid] for pid in chosen)
        await until(lambda: all(membership(pid) == before[pid] for pid in pids), lambda: str(before))
    assert not container.broken
    assert not other.broken
    assert (await container.run(sh("echo here"))).stdout == b"here\n"


async def test_one_hierarchy_is_enough(depot: Depot, stack: Path) -> None:
    """On v1 a process can leave the limits of memory alone."""
    container = await with_processes(depot, stack)
    pid = all_pids(container)[1]
    before = membership(pid)
    (roots(container)[-1] / "cgroup.procs").write_text(str(pid))
    assert membership(pid) != before
    with within(NOTICED_S):
        await until(lambda: membership(pid) == before, lambda: membership(pid))


async def test_a_removed_cgroup_breaks_its_container_alone(depot: Depot, stack: Path) -> None:
    """Its limits and counts are lost. It can be destroyed, and nothing of it is left."""
    container, other = await with_processes(depot, stack), await with_processes(depot, stack)
    pids = all_pids(container)
    move_out(container, *pids)
    for directory in container._body.cgroup._directories():
        await is_removed(directory)
    with within(NOTICED_S):
        await until(lambda: bool(container.broken), lambda: "not noticed")
    assert container.broken == REMOVED
    assert not other.broken
    await container.destroy()
    await until(lambda: not any(map(is_alive, pids)), lambda: f"left: {pids}")


def is_alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def is_removed(directory: Path) -> None:
    """As soon as the kernel lets it go."""

    def removed() -> bool:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    await until(removed, lambda: f"{directory} stays")


async def test_processes_that_come_and_go_are_no_strays(depot: Depot, stack: Path) -> None:
    """On v1 a process that exits is shown in the root cgroup; one that wshd starts is on its way."""
    container = await depot.create(app(stack))
    await container.spawn(sh("while :; do true & /bin/true; (/bin/true); done"))
    deadline_s = time.monotonic() + 3
    looks = 0
    while time.monotonic() < deadline_s:
        found = [one for one in strays.walk(container._body.cgroup, container.pid, set()) if one is not None]
        assert found == []
        looks += 1
        if looks % 20 == 0:
            assert (await container.run(sh("true"))).status.ok
    assert looks > 100


async def test_a_crowd_is_looked_at_in_part(
    depot: Depot, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at one container is bounded."""
    monkeypatch.setattr(strays, "MOST_PROCESSES", 5)
    container = await depot.create(app(stack))
    await container.spawn(sh("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; wait"))
    await until(lambda: len(all_pids(container)) >= 12, lambda: "few")
    assert len(list(strays.walk(container._body.cgroup, container.pid, set()))) == 5


async def test_a_look_that_fails_costs_its_container_alone(
    depot: Depot, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    container, other = await with_processes(depot, stack), await with_processes(depot, stack)
    real = strays.is_inside

    def refuses(cgroup: CgroupSet, pid: int, known: set[bytes]) -> bool:
        if pid == container.pid:
            raise PermissionError(1, "refused")
        return real(cgroup, pid, known)

    monkeypatch.setattr(strays, "is_inside", refuses)
    monkeypatch.setattr(depot._shared, "log", told)
    pid = all_pids(other)[1]
    before = membership(pid)
    move_out(other, pid)
    await until(lambda: membership(pid) == before, lambda: membership(pid))
