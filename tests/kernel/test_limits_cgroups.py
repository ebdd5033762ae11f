"""Containers and the host's cgroups: weights against each other, the view from inside, and what a former manager left.

Runs on the hierarchy that this kernel has: v1 or v2 (`make vm-test`).
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from depot_kit import app, close_empty, settings_for, sh
from depot_kit import depot as depot
from depot_kit import stack as stack

from agent.config import InstanceSettings
from agent.inside.limits import cpu_shares
from container import Container, Depot, Limits, User
from container.cgroups import Version, host_hierarchy

pytestmark = pytest.mark.kernel

MIB = 1 << 20
V1 = host_hierarchy().version is Version.V1
SPINS = "while :; do :; done"


def own(box: Container, name: str, *, leaf: str = "") -> Path:
    """A file of the container's own directory, or of a leaf of it, asked of the file system."""
    below = Path(f"garrison-test-{os.getpid()}", box.link_id, leaf, name)
    places = [point / below for point in dict.fromkeys(host_hierarchy().mounts.values())]
    (found,) = (place for place in places if place.exists())
    return found


def procs_of(box: Container) -> list[int]:
    """Host pids of its jobs, from whichever hierarchy holds them."""
    below = Path(f"garrison-test-{os.getpid()}", box.link_id, "job", "cgroup.procs")
    for point in host_hierarchy().mounts.values():
        if (point / below).exists():
            return [int(word) for word in (point / below).read_text().split()]
    raise AssertionError(below)


async def cpu_ns(*boxes: Container) -> list[int]:
    return [(await box.info()).cpu_ns for box in boxes]


async def test_an_app_of_2048_mb_gets_32_times_the_cpu_of_one_of_64(depot: Depot, stack: Path) -> None:
    """Both spin on one cpu. What anybody else takes of it, he takes of both."""
    shares = [cpu_shares(memory_mb, InstanceSettings()) for memory_mb in (2048, 64)]
    assert shares == [256, 8]
    boxes = [await depot.create(app(stack, limits=Limits(cpu_shares=one))) for one in shares]
    cpu = min(os.sched_getaffinity(0))
    for box in boxes:
        await box.spawn(sh(SPINS))
        for pid in procs_of(box):
            os.sched_setaffinity(pid, {cpu})
    before = await cpu_ns(*boxes)

    async def measured() -> list[int]:
        while True:
            used = [now - then for now, then in zip(await cpu_ns(*boxes), before, strict=True)]
            if sum(used) > 4e9:
                return used
            await asyncio.sleep(0.1)

    large, small = await asyncio.wait_for(measured(), 240)

    assert 20 <= large / small <= 48, (large, small)


async def test_shares_stand_on_the_containers_own_directory(depot: Depot, stack: Path) -> None:
    """At create and live, and nowhere below: `init` and `job` share what the container has."""
    box = await depot.create(app(stack, limits=Limits(cpu_shares=128)))
    name, leaf = ("cpu.shares", "1024") if V1 else ("cpu.weight", "100")
    assert own(box, name).read_text().strip() == "128"

    await box.limit_cpu(2048)

    assert own(box, name).read_text().strip() == "2048"
    assert {own(box, name, leaf=one).read_text().strip() for one in ("init", "job")} == {leaf}
    assert box.limits.cpu_shares == 2048


async def test_a_container_without_shares_weighs_1024(depot: Depot, stack: Path) -> None:
    """On both hierarchies: against the same neighbour it gets the same."""
    box = await depot.create(app(stack))

    assert own(box, "cpu.shares" if V1 else "cpu.weight").read_text().strip() == "1024"


# What a former manager left.


async def test_a_container_of_a_former_manager_is_set_as_ours_are(
    tmp_path: Path, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shares stood on `job`, where they weigh nothing; its sockets were free; it had no cpuset of its own."""
    settings = settings_for(tmp_path)
    with monkeypatch.context() as former:
        former.setattr("container.cgroups.v1.V1_WANTED", ())
        first = await Depot.open(settings)
    limits = Limits(memory_bytes=64 * MIB, cpu_shares=8)
    made = await first.create(app(stack, handle="old", limits=limits))
    if V1:
        own(made, "cpu.shares").write_text("1024")
        own(made, "cpu.shares", leaf="job").write_text("8")
        own(made, "memory.kmem.tcp.limit_in_bytes", leaf="job").write_text("-1")
    else:
        own(made, "cpu.weight").write_text("100")
        own(made, "cpu.weight", leaf="job").write_text("1")
    await first.close()

    second = await Depot.open(settings)
    assert (await second.recover()).found == ("old",)
    box = second.find("old")

    if V1:
        assert own(box, "cpu.shares").read_text().strip() == "8"
        assert own(box, "cpu.shares", leaf="job").read_text().strip() == "1024"
        tcp = own(box, "memory.kmem.tcp.limit_in_bytes", leaf="job")
        assert int(tcp.read_text()) == 16 * MIB
    else:
        assert own(box, "cpu.weight").read_text().strip() == "8"
        assert own(box, "cpu.weight", leaf="job").read_text().strip() == "100"
    assert (await box.run(sh("echo on"))).stdout == b"on\n"
    await close_empty(second)


async def test_limits_that_cannot_be_set_again_cost_no_app_its_life(
    tmp_path: Path, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken up as it is."""
    settings = settings_for(tmp_path)
    first = await Depot.open(settings)
    await first.create(app(stack, handle="old", limits=Limits(cpu_shares=8)))
    await first.close()
    second = await Depot.open(settings)

    def refuse(_: object) -> None:
        raise OSError(1, "Operation not permitted", "cpu.shares")

    kind = type(second._shared.cgroups.find(second._shared.cgroups.list()[0]))
    monkeypatch.setattr(kind, "take_up", refuse)

    assert (await second.recover()).found == ("old",)
    assert (await second.find("old").run(sh("echo on"))).stdout == b"on\n"
    await close_empty(second)


# What is seen inside.


async def text(box: Container, script: str, user: User = User.VCAP) -> str:
    result = await box.run(sh(script, user=user))
    assert result.status.code == 0, result
    return result.stdout.decode()


def limit_file() -> str:
    """Where programs look for a memory limit."""
    return "/sys/fs/cgroup/memory/memory.limit_in_bytes" if V1 else "/sys/fs/cgroup/memory.max"


async def test_an_app_finds_its_limits(depot: Depot, stack: Path) -> None:
    """At the places where a JVM, Node and .NET look, and as they are now."""
    box = await depot.create(app(stack, limits=Limits(memory_bytes=96 * MIB, pids=64)))
    assert int(await text(box, f"cat {limit_file()}")) == 96 * MIB
    pids = "/sys/fs/cgroup/pids/pids.max" if V1 else "/sys/fs/cgroup/pids.max"
    assert int(await text(box, f"cat {pids}")) == 64

    await box.limit_memory(128 * MIB)

    assert int(await text(box, f"cat {limit_file()}")) == 128 * MIB
    members = await text(box, f"cat {limit_file().rpartition('/')[0]}/cgroup.procs; echo $$")
    assert members.split()[-1] in members.split()[:-1], "a job finds itself in its own group"


@pytest.mark.skipif(not V1, reason="v2 is one mount")
async def test_each_hierarchy_of_v1_that_a_container_has_is_mounted(depot: Depot, stack: Path) -> None:
    """Under the names of all its controllers; a JVM takes v1 only with memory, cpu, cpuacct and cpuset."""
    box = await depot.create(app(stack))

    mounted = await text(box, "awk '/ - cgroup / {print $5}' /proc/self/mountinfo")
    names = {name for path in mounted.split() for name in path.rpartition("/")[2].split(",")}
    host = host_hierarchy()
    assert names == {name for together in host.together.values() for name in together}
    assert names >= {"memory", "cpu", "cpuacct", "devices", "pids", "freezer"} | (
        {"cpuset"} if "cpuset" in host.mounts else set()
    )
    assert set((await text(box, "ls /sys/fs/cgroup")).split()) >= names
    for name in names:
        assert await text(box, f"ls /sys/fs/cgroup/{name}/cgroup.procs")


@pytest.mark.skipif(
    "cpuset" not in host_hierarchy().mounts, reason="this host's v1 has no cpuset, or it is v2"
)
async def test_a_container_has_a_cpuset_of_its_own_with_all_that_the_host_has(
    depot: Depot, stack: Path
) -> None:
    """Copied before anybody joins: an empty one takes nobody."""
    box = await depot.create(app(stack))
    top = host_hierarchy().mounts["cpuset"]

    for name in ("cpuset.cpus", "cpuset.mems"):
        assert await text(box, f"cat /sys/fs/cgroup/cpuset/{name}") == (top / name).read_text()
    job = await box.spawn(sh("exec sleep 1000"))
    members = top / f"garrison-test-{os.getpid()}" / box.link_id / "job/cgroup.procs"
    assert len(members.read_text().split()) == 1
    assert job.status is None


@pytest.mark.parametrize("user", User)
async def test_nobody_inside_changes_a_limit(depot: Depot, stack: Path, user: User) -> None:
    """Neither by writing, nor by a group of his own, nor by another mount of it."""
    box = await depot.create(app(stack, limits=Limits(memory_bytes=96 * MIB)))
    place = limit_file().rpartition("/")[0]

    for script in (
        f"echo 1000000000 > {limit_file()}",
        f"mkdir {place}/mine",
        "touch /sys/fs/cgroup/mine",
        f"mount -o remount,rw {place}",
        f"mount -o remount,bind,rw {place}",
        f"umount {place}",
        "umount -l /sys/fs/cgroup",
        f"mkdir /tmp/m; mount -t {'cgroup -o memory' if V1 else 'cgroup2'} none /tmp/m",
    ):
        assert (await box.run(sh(script, user=user))).status.code != 0, script

    assert int(await text(box, f"cat {limit_file()}")) == 96 * MIB


async def test_no_name_of_the_host_shows_in_cgroups(depot: Depot, stack: Path) -> None:
    """Neither the parent's name, nor the container's, nor a neighbour."""
    box = await depot.create(app(stack, handle="box-one"))
    neighbour = await depot.create(app(stack, handle="box-two"))

    seen = await text(
        box,
        "cat /proc/self/mountinfo /proc/self/cgroup /proc/1/cgroup; find /sys/fs/cgroup;"
        " find /sys/fs/cgroup -type f | while read f; do cat $f 2>/dev/null; done; true",
        User.ROOT,
    )

    for name in ("garrison", box.link_id, neighbour.link_id, "box-one", "box-two", "release_agent"):
        assert name not in seen, name
    roots = {line.split()[3] for line in seen.splitlines() if " - cgroup" in line}
    assert roots == {"/"}
    groups = await text(box, "cat /proc/self/cgroup")
    assert {line.split(":")[2] for line in groups.splitlines()} == {"/"}


async def test_a_container_without_memory_limit_sees_that_it_has_none(depot: Depot, stack: Path) -> None:
    """An unlimited group reads as such, and programs fall back on the host's memory."""
    box = await depot.create(app(stack, limits=replace(Limits(), pids=10)))

    told = (await text(box, f"cat {limit_file()}")).strip()

    assert told == "max" or int(told) > 1 << 60
