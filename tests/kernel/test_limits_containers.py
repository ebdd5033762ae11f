"""Limits on real containers: what an app cannot do, that neighbours and wshd are not affected, and live changes."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest
from depot_kit import app, close_empty, settings_for, sh, until
from depot_kit import depot as depot
from depot_kit import stack as stack
from disk_kit import loops

from container import Container, ContainerEvent, Depot, Limits, PortMapping, User
from container.disk import DiskError

pytestmark = pytest.mark.kernel

MIB = 1 << 20
#: busybox dd takes its whole block as a buffer and fills it.
EATS_96_MIB = "dd if=/dev/zero of=/dev/null bs=96M count=1 2>/dev/null"
FILLS = "dd if=/dev/zero of=/home/vcap/big bs=64k"
BOMB = "exec fork-bomb"


async def next_event(box: Container) -> asyncio.Task[ContainerEvent]:
    """Listens from now on."""
    heard: asyncio.Task[ContainerEvent] = asyncio.create_task(anext(box.events.subscribe()))
    await asyncio.sleep(0)
    return heard


def knob(box: Container, *names: str) -> str:
    """A file of the leaf ``job``, asked of the file system: v1's name or v2's."""
    parent = f"garrison-test-{os.getpid()}/{box.link_id}/job"
    (found,) = {
        path.resolve() for name in names for path in Path("/sys/fs/cgroup").glob(f"*/{parent}/{name}")
    } | {path for name in names for path in Path("/sys/fs/cgroup").glob(f"{parent}/{name}")}
    return found.read_text().strip()


async def test_one_whole_life(depot: Depot, stack: Path) -> None:
    """Created with its network, run, reached, limited, destroyed. `make vm-test` runs this on another kernel."""
    limits = Limits(64 * MIB, cpu_shares=512, pids=32, disk_bytes=16 * MIB, disk_max_bytes=64 * MIB)
    box = await depot.create(app(stack, home_layers=(stack / "etc",), limits=limits))

    assert (await box.run(sh("id -u; cat /home/vcap/passwd | wc -l"))).stdout == b"2000\n2\n"
    server = await box.spawn(sh("exec nc -l -p 8080 -e /bin/echo hello"))
    published = await box.net_in(PortMapping(container_port=8080))
    assert box.address is not None
    await until(lambda: b"hello" in ask(box.address, 8080), lambda: "the app does not answer", 60)
    assert (await server.wait()).code == 0
    assert published.host_port is not None

    heard = await next_event(box)
    assert (await box.run(sh(EATS_96_MIB))).status.signal == 9
    assert (await asyncio.wait_for(heard, 60)).kind == "out of memory"
    await box.limit_memory(192 * MIB)
    assert (await box.run(sh(EATS_96_MIB))).status.ok

    assert b"No space left" in (await box.run(sh(FILLS))).stderr
    usage = (await box.info()).disk_bytes
    assert 15 * MIB <= usage <= 16 * MIB
    await box.limit_disk(64 * MIB)
    assert (await box.run(sh("dd if=/dev/zero of=/home/vcap/more bs=64k count=600 2>/dev/null"))).status.ok

    assert (await box.info()).oom_kills == 1
    await box.stop(1)
    await depot.destroy(box.handle)


def ask(address: str | None, port: int) -> bytes:
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            return connection.recv(100)
    except OSError:
        return b""


# Memory.


async def test_a_job_that_eats_its_memory_loses_a_process_and_never_wshd(depot: Depot, stack: Path) -> None:
    """Ten times over; another job of the same container lives on, and the event is told each time."""
    box = await depot.create(app(stack, limits=Limits(memory_bytes=48 * MIB)))
    neighbour = await box.spawn(sh("exec sleep 1000"))

    for kills in range(1, 11):
        heard = await next_event(box)
        result = await box.run(sh(f"{EATS_96_MIB}; echo $?"))
        assert result.stdout == b"137\n", "the shell lives, its child was killed"
        assert (await asyncio.wait_for(heard, 30)).kind == "out of memory"
        assert (await box.info()).oom_kills == kills

    assert neighbour.status is None
    assert box.events.kinds == ("out of memory",)
    assert (await box.run(sh("echo alive"))).stdout == b"alive\n"


async def test_output_of_a_job_is_not_its_memory(depot: Depot, stack: Path) -> None:
    """The spool's page cache belongs to wshd: 128 MiB of output through a limit of 16."""
    box = await depot.create(app(stack, limits=Limits(memory_bytes=16 * MIB)))

    job = await box.spawn(sh("dd if=/dev/zero bs=64k count=2048 2>/dev/null"))

    assert (await job.wait()).code == 0
    assert job.size_bytes("stdout") == 128 * MIB
    assert (await box.info()).oom_kills == 0


async def test_the_memory_limit_changes_while_the_job_runs(depot: Depot, stack: Path) -> None:
    """The same program dies below a limit, lives above it, and dies again."""
    box = await depot.create(app(stack))
    seen = []
    for limit in (None, 48 * MIB, 192 * MIB, 48 * MIB, None):
        await box.limit_memory(limit)
        assert box.limits.memory_bytes == limit
        seen.append((await box.run(sh(EATS_96_MIB))).status.signal)

    assert seen == [None, 9, None, 9, None]


# Processes.


async def test_a_fork_bomb_is_held_and_stopped(depot: Depot, stack: Path) -> None:
    """It has its number of processes and not one more; wshd answers beside it, and stop ends it at once."""
    box = await depot.create(app(stack, limits=Limits(pids=64)))
    bomb = await box.spawn(sh(BOMB))

    async def full() -> None:
        while (await box.info()).pids < 60:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(full(), 30)
    assert (await box.info()).pids <= 64
    begun = time.monotonic()
    await box.stop(0.1)
    assert time.monotonic() - begun < 20
    await bomb.wait()
    assert (await box.info()).pids == 0


async def test_a_container_with_a_fork_bomb_is_destroyed(depot: Depot, stack: Path) -> None:
    """Without being stopped first, and with nothing left of it (the fixture looks)."""
    box = await depot.create(app(stack, limits=Limits(pids=200)))
    await box.spawn(sh(BOMB))
    await until(lambda: int(knob(box, "pids.current")) > 100, lambda: "no bomb", 30)

    await depot.destroy(box.handle)


async def test_the_limit_of_processes_changes_live(depot: Depot, stack: Path) -> None:
    """A shell that wants three children gets them only above the limit."""
    box = await depot.create(app(stack, limits=Limits(pids=2)))
    three = "(sleep 1000 & sleep 1000 & sleep 1000 & echo ok) 2>/dev/null; kill $(jobs -p) 2>/dev/null; true"
    assert b"ok" not in (await box.run(sh(f"timeout 5 sh -c '{three}'"))).stdout
    await box.limit_pids(32)
    job = await box.spawn(sh("sleep 1000 & sleep 1000 & sleep 1000 & echo ok; wait"))
    assert (await anext(job.stream("stdout"))).data == b"ok\n"

    await box.limit_pids(None)

    assert knob(box, "pids.max") == "max"


# Disk.


async def test_inside_the_disk_ends_where_the_limit_is(depot: Depot, stack: Path) -> None:
    """For vcap and for root, in the home and elsewhere: one limit for both uppers."""
    box = await depot.create(app(stack, home_layers=(stack / "etc",), limits=Limits(disk_bytes=32 * MIB)))
    await box.run(sh("dd if=/dev/zero of=/home/vcap/a bs=64k count=160 2>/dev/null"))
    result = await box.run(sh("dd if=/dev/zero of=/var/b bs=64k 2>&1 | grep -c 'No space'", user=User.ROOT))

    assert result.stdout == b"1\n"
    info = await box.info()
    assert 31 * MIB <= info.disk_bytes <= 32 * MIB
    sizes = (await box.run(sh("stat -c %s /home/vcap/a /var/b"))).stdout.split()
    assert 31 * MIB <= sum(map(int, sizes)) <= 32 * MIB


async def df_inside(box: Container, path: str) -> tuple[int, int, int, int]:
    """Size, used and available in bytes, and the percentage that it prints."""
    line = (await box.run(sh(f"df -k {path}"))).stdout.decode().splitlines()[-1].split()
    size, used, available = (int(word) * 1024 for word in line[1:4])
    return size, used, available, int(line[4].rstrip("%"))


@pytest.mark.parametrize("path", ["/", "/home/vcap"])
async def test_df_inside_shows_the_limit(depot: Depot, stack: Path, path: str) -> None:
    """Size within five per cent of it, empty at first, and what is left of it after a write."""
    box = await depot.create(app(stack, home_layers=(stack / "etc",), limits=Limits(disk_bytes=256 * MIB)))
    size, used, available, percent = await df_inside(box, path)
    assert 256 * MIB <= size <= 1.05 * 256 * MIB
    assert used <= MIB
    assert 255 * MIB <= available <= 256 * MIB
    assert percent <= 1

    assert (await box.run(sh("head -c 67108864 /dev/zero > /tmp/file"))).status.ok

    size, used, available, percent = await df_inside(box, path)
    assert 64 * MIB <= used <= 65 * MIB
    assert 191 * MIB <= available <= 192 * MIB
    assert percent in (25, 26)


async def test_df_inside_follows_a_limit_with_headroom(depot: Depot, stack: Path) -> None:
    """The size is what was formatted, available is what the limit leaves; without headroom a raise is refused."""
    limits = Limits(disk_bytes=64 * MIB, disk_max_bytes=256 * MIB)
    box = await depot.create(app(stack, limits=limits))
    for limit_mib in (64, 256, 8, 128):
        await box.limit_disk(limit_mib * MIB)
        size, _, available, _ = await df_inside(box, "/")
        assert 256 * MIB <= size <= 1.05 * 256 * MIB
        assert (limit_mib - 1) * MIB <= available <= limit_mib * MIB
    fixed = await depot.create(app(stack, limits=Limits(disk_bytes=64 * MIB)))

    with pytest.raises(DiskError, match="fixed at create"):
        await fixed.limit_disk(128 * MIB)

    assert fixed.limits.disk_bytes == 64 * MIB
    await fixed.limit_disk(32 * MIB)
    await fixed.limit_disk(64 * MIB)


async def test_a_reserve_that_was_lost_is_set_by_recovery(tmp_path: Path, stack: Path) -> None:
    """The kernel keeps it for as long as the mount, and nobody else does."""
    settings = settings_for(tmp_path)
    first = await Depot.open(settings)
    made = await first.create(app(stack, handle="box", limits=Limits(disk_bytes=64 * MIB)))
    (loop,) = loops(made.directory / "disk.img")
    knob = Path("/sys/fs/ext4", loop, "reserved_clusters")
    reserve = knob.read_text()
    await first.close()
    knob.write_text("0")

    second = await Depot.open(settings)
    await second.recover()

    assert knob.read_text() == reserve != "0\n"
    await close_empty(second)


async def test_a_disk_limit_taken_down_and_up_while_a_job_writes(depot: Depot, stack: Path) -> None:
    """Below what is used nothing more is written and nothing lost; above it the writer goes on."""
    box = await depot.create(app(stack, limits=Limits(disk_bytes=64 * MIB, disk_max_bytes=128 * MIB)))
    writer = await box.spawn(
        sh("while :; do dd if=/dev/zero bs=64k count=16 2>/dev/null >> /home/vcap/log; sleep 0.01; done")
    )

    async def used(at_least: int) -> None:
        while (await box.info()).disk_bytes < at_least:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(used(8 * MIB), 30)
    await box.limit_disk(4 * MIB)
    full = (await box.info()).disk_bytes
    await asyncio.sleep(0.2)
    assert (await box.info()).disk_bytes <= full + MIB

    await box.limit_disk(128 * MIB)
    await asyncio.wait_for(used(full + 8 * MIB), 30)
    assert writer.status is None


async def test_inodes_end_too(depot: Depot, stack: Path) -> None:
    """Empty files cost no bytes, and are bounded all the same."""
    box = await depot.create(app(stack, limits=Limits(disk_bytes=64 * MIB, disk_inodes=3000)))
    result = await box.run(
        sh(
            "cd /home/vcap; (i=0; while :; do : > f$i; i=$((i+1)); done 2>/dev/null);"
            "ls | grep -c ^f[0-9]; rm f1; : > again; echo $?"
        )
    )

    made, again = map(int, result.stdout.split())
    assert 3000 <= made <= 3000 + 128
    assert again == 0


async def test_a_recovered_container_has_its_limits(tmp_path: Path, stack: Path) -> None:
    """Another manager, the same kernel: limits hold, are known, and can be changed."""
    settings = settings_for(tmp_path)
    first = await Depot.open(settings)
    limits = Limits(48 * MIB, cpu_shares=256, pids=32, disk_bytes=16 * MIB, disk_max_bytes=32 * MIB)
    handle = (await first.create(app(stack, limits=limits))).handle
    await first.close()

    second = await Depot.open(settings)
    assert (await second.recover()).found == (handle,)
    box = second.find(handle)
    assert box.limits == limits
    heard = await next_event(box)
    assert (await box.run(sh(EATS_96_MIB))).status.signal == 9
    assert (await asyncio.wait_for(heard, 30)).kind == "out of memory"
    assert b"No space left" in (await box.run(sh(FILLS))).stderr
    await box.limit_disk(32 * MIB)
    assert (await box.run(sh("dd if=/dev/zero of=/home/vcap/more bs=64k count=200 2>/dev/null"))).status.ok

    await second.destroy(handle)
    await second.close(remove_tables=True)
