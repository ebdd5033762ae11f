"""The contract of both cgroup back ends. Runs on the hierarchy that this kernel has: v1 or v2 (`make vm-test`)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from cgroups_kit import Inside, backend, box, directories, eat, idle, until

from container.cgroups import Cgroups, CgroupSet, Version, host_hierarchy, open_backend
from container.cgroups.base import DEVICES

__all__ = ["backend", "box"]  # fixtures by import
pytestmark = pytest.mark.kernel

MIB = 1 << 20


# Names and life.


def test_a_set_is_made_found_listed_and_gone(backend: Cgroups) -> None:
    """Two leaves in every hierarchy; what is destroyed is nowhere any more."""
    assert backend.list() == ()
    made = [backend.create(name) for name in ("a", "b.c-d_e")]

    assert backend.list() == ("a", "b.c-d_e")
    for top in directories(backend, "a"):
        assert {entry.name for entry in top.iterdir() if entry.is_dir()} == {"init", "job"}
    assert len(directories(backend, "a")) == len(made[0].job_files) == len(made[0].init_files)
    assert backend.find("absent") is None

    for one in made:
        one.destroy()
        one.destroy()
    assert backend.find("a") is None
    assert backend.list() == ()


def test_another_manager_finds_a_set_with_its_processes_and_limits(backend: Cgroups, box: CgroupSet) -> None:
    """After a restart: a second back end, the same kernel."""
    box.set_memory(64 * MIB)
    child = Inside(box, idle)

    found = open_backend(backend.parent).find("box")

    assert found is not None
    assert found.processes() == (child.pid,)
    assert found.memory_limit_bytes() == 64 * MIB
    found.kill_all()
    assert child.wait() == -signal.SIGKILL
    found.destroy()
    assert not box.exists()


def test_a_set_of_which_a_part_is_gone_is_still_found(backend: Cgroups, box: CgroupSet) -> None:
    """A destroy that was killed half-way is taken up again."""
    top = directories(backend, "box")[0]
    (top / "init").rmdir()
    (top / "job").rmdir()
    if len(directories(backend, "box")) > 1:
        top.rmdir()

    found = backend.find("box")

    assert found is not None
    found.kill_all()
    found.thaw()
    found.destroy()
    assert backend.list() == ()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../box", "a/b", "/a", "a b", "a\n", "-a", "ä", "a\0", "x" * 129]
)
def test_an_odd_name_is_refused(backend: Cgroups, name: str) -> None:
    """A name is one directory below the parent, nothing else."""
    with pytest.raises(ValueError, match="expected 1 to 128 of"):
        backend.create(name)
    with pytest.raises(ValueError, match="expected 1 to 128 of"):
        backend.find(name)
    with pytest.raises(ValueError, match="cgroup parent: expected 1 to 128 of"):
        open_backend(name)


def test_a_name_is_given_once(backend: Cgroups, box: CgroupSet) -> None:
    """The refusal leaves the first one as it was."""
    child = Inside(box, idle)

    with pytest.raises(FileExistsError):
        backend.create("box")

    assert box.processes() == (child.pid,)
    box.kill_all()
    child.wait()


def test_parents_go_when_they_are_empty_and_come_again(backend: Cgroups, box: CgroupSet) -> None:
    """Several depots may share them: the last one out takes them away, the next one in makes them."""
    backend.remove_parents()
    assert backend.list() == ("box",)

    box.destroy()
    backend.remove_parents()
    backend.remove_parents()
    assert not any((point / backend.parent).exists() for point in host_hierarchy().mounts.values())

    assert backend.create("again").exists()


# Joining and limits.


def test_a_foreign_id_joins_by_descriptors_that_root_opened(box: CgroupSet) -> None:
    """The opener's credentials count (docs/wshd.md, "Jobs"); by path the same id is refused."""

    def by_path() -> None:
        box.job_files[0].open("w").close()

    child = Inside(box, by_path, uid=65_000)

    assert child.wait() == 13  # EACCES; that it joined before is what Inside asserts


def test_limits_stand_on_job_and_never_on_init(backend: Cgroups, box: CgroupSet) -> None:
    """wshd lives beside its job: nothing that the app does makes it short of anything."""
    init = {
        path: path.read_text()
        for top in directories(backend, "box")
        for path in (top / "init").iterdir()
        if path.name in ("memory.limit_in_bytes", "memory.max", "cpu.shares", "cpu.weight", "pids.max")
    }

    box.set_memory(32 * MIB)
    box.set_cpu_shares(128)
    box.set_pids(8)

    assert init == {path: path.read_text() for path in init}
    assert len(init) == 3


def test_the_memory_limit_changes_both_ways_and_goes(box: CgroupSet) -> None:
    """Live, and told as the kernel took it: in whole pages."""
    child = Inside(box, idle)

    taken = [box.set_memory(size) for size in (64 * MIB, 128 * MIB, 32 * MIB, 33_000_001, None, 16 * MIB)]

    assert taken == [64 * MIB, 128 * MIB, 32 * MIB, 33_000_001 // 4096 * 4096, None, 16 * MIB]
    assert box.memory_limit_bytes() == 16 * MIB
    box.kill_all()
    child.wait()


def test_a_memory_limit_below_what_is_used_is_never_half_taken(box: CgroupSet) -> None:
    """v1 refuses it and keeps the old one, v2 takes it and kills: either way one limit stands."""

    def hold() -> None:
        held = [eat(32 * MIB)]
        os.kill(os.getpid(), signal.SIGSTOP)
        held.append(eat(24 * MIB))

    box.set_memory(64 * MIB)
    child = Inside(box, hold)
    os.waitpid(child.pid, os.WUNTRACED)

    if host_hierarchy().version is Version.V1:
        with pytest.raises(OSError, match="limit_in_bytes"):
            box.set_memory(8 * MIB)
        os.kill(child.pid, signal.SIGCONT)
        assert child.wait() == 0  # 56 of 64 MiB: memory and swap are what they were
    else:
        assert box.set_memory(8 * MIB) == 8 * MIB
        assert child.wait() == -signal.SIGKILL


def test_cpu_shares_are_told_as_the_kernel_took_them(box: CgroupSet) -> None:
    """v1's range is 2 to 262144, v2's 1 to 10000; what lies outside is clamped, what lies inside is the same on both."""
    least, most = (2, 262_144) if host_hierarchy().version is Version.V1 else (1, 10_000)

    assert [box.set_cpu_shares(shares) for shares in (1024, 8, 1, 1_000_000, 512)] == [
        1024,
        8,
        least,
        most,
        512,
    ]


def test_the_limit_of_pids_holds_and_can_be_raised(box: CgroupSet) -> None:
    """EAGAIN for the next fork, until the limit is raised under it."""

    def fork_three() -> None:
        for _ in range(3):
            if os.fork() == 0:
                signal.pause()
        signal.pause()

    box.set_pids(2)
    failed = Inside(box, fork_three)
    assert failed.wait() == 11  # EAGAIN
    assert box.pids() == 1

    box.set_pids(10)
    child = Inside(box, fork_three)
    until(lambda: box.pids() == 5)

    box.set_pids(None)
    box.kill_all()
    assert child.wait() == -signal.SIGKILL


def test_only_the_listed_devices_can_be_used_and_none_made(box: CgroupSet, tmp_path: Path) -> None:
    """As root without a namespace, so that nothing but the cgroup can be the one who says no."""
    tried = {("c", 1, minor) for minor in (1, 2, 3, 4, 5, 7, 8, 9, 11)} | {
        ("c", 5, 0),
        ("c", 5, 1),
        ("c", 5, 2),
        ("c", 10, 200),
        ("c", 10, 237),
        ("c", 4, 0),
        ("b", 7, 0),
    }
    for kind, major, minor in tried:
        mode = {"c": 0o020666, "b": 0o060666}[kind]
        os.mknod(tmp_path / f"{kind}-{major}-{minor}", mode, os.makedev(major, minor))
    open_now = tmp_path / "open"
    open_now.touch()

    def use_all() -> None:
        usable = []
        for kind, major, minor in sorted(tried):
            try:
                os.close(
                    os.open(tmp_path / f"{kind}-{major}-{minor}", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
                )
            except OSError as e:
                if e.errno == 1:  # EPERM is the cgroup's; whatever else came, came after it
                    continue
            usable.append(f"{kind} {major}:{minor}")
        open_now.write_text("\n".join(usable))
        os.mknod(tmp_path / "made", 0o020666, os.makedev(1, 3))

    child = Inside(box, use_all)

    assert child.wait() == 1  # EPERM, from mknod of a device that may be used
    assert not (tmp_path / "made").exists()
    listed = {(kind, major, minor) for kind, major, minor, _ in DEVICES if minor is not None}
    assert set(open_now.read_text().split("\n")) == {
        f"{kind} {major}:{minor}" for kind, major, minor in tried & listed
    }


# Counters.


def test_memory_is_what_the_app_holds(box: CgroupSet) -> None:
    """Anonymous pages count, page cache that can go at once does not."""

    def hold() -> None:
        held = eat(24 * MIB)
        os.kill(os.getpid(), signal.SIGSTOP)
        held.close()

    child = Inside(box, hold)
    os.waitpid(child.pid, os.WUNTRACED)

    assert 24 * MIB <= box.memory_bytes() <= 30 * MIB
    assert any(24 * MIB <= box.memory_stat().get(key, 0) <= 30 * MIB for key in ("anon", "total_rss"))
    os.kill(child.pid, signal.SIGCONT)
    child.wait()


def test_cpu_time_is_counted_in_nanoseconds(box: CgroupSet) -> None:
    """Against what the process itself says it used."""

    def work() -> None:
        while time.process_time() < 0.3:
            pass

    child = Inside(box, work)
    assert child.wait() == 0

    user_ns, system_ns = box.cpu_user_system_ns()
    assert 0.25e9 < box.cpu_ns() < 3e9
    assert 0.1e9 < user_ns + system_ns < 3e9


def test_pids_are_those_of_the_job(box: CgroupSet) -> None:
    """Zero, then one, then zero."""
    assert (box.pids(), box.processes()) == (0, ())
    child = Inside(box, idle)
    assert (box.pids(), box.processes()) == (1, (child.pid,))
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    until(lambda: box.pids() == 0)


async def test_an_oom_kill_is_told_and_counted(box: CgroupSet) -> None:
    """Each of them, until the watch is stopped."""
    told = asyncio.Event()
    stop = box.watch_oom(asyncio.get_running_loop(), told.set)
    box.set_memory(16 * MIB)

    for kills in (1, 2):
        child = Inside(box, lambda: eat(64 * MIB))
        assert await asyncio.to_thread(child.wait) == -signal.SIGKILL
        await asyncio.wait_for(told.wait(), 30)
        told.clear()
        assert box.oom_kills() == kills

    stop()
    stop()
    child = Inside(box, lambda: eat(64 * MIB))
    assert await asyncio.to_thread(child.wait) == -signal.SIGKILL
    until(lambda: box.oom_kills() == 3)
    assert not told.is_set()


async def test_a_watch_outlives_its_cgroup_quietly(box: CgroupSet) -> None:
    """Destroyed below it: no event, no error, no descriptor left."""
    before = len(os.listdir("/proc/self/fd"))
    told: list[None] = []
    stop = box.watch_oom(asyncio.get_running_loop(), lambda: told.append(None))

    await asyncio.to_thread(box.destroy)
    await asyncio.sleep(0)  # v1 says that it is gone: the loop's turn to hear it
    stop()

    assert len(os.listdir("/proc/self/fd")) == before
    assert told == []
