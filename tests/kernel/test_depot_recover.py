"""A restarted manager: which containers it takes up, which remains it removes, and what it must leave alone."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from depot_kit import app, close_empty, leases_in_use, links, nothing_left, settings_for, sh, until
from depot_kit import left as left
from depot_kit import stack as stack

from container import (
    ContainerState,
    Depot,
    DepotBusy,
    Output,
    Past,
    WshdError,
    snapshot,
    wshd,
)
from container.body import Body
from container.host import HostUnfit
from container.network.policy import interface_of
from container.snapshot import Phase, Snapshot

pytestmark = pytest.mark.kernel


def rewrite(base: Path, change: Callable[[Snapshot], Snapshot]) -> Snapshot:
    """Change the snapshot of the container that was left; answers with the one before."""
    directory = settings_for(base).depot_dir / "left"
    old = snapshot.read(directory)
    snapshot.write(directory, change(old))
    return old


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def removes_it_whole(base: Path, pid: int) -> None:
    """The next manager finds nothing, ends pid 1, and leaves nothing of the container."""
    depot = await Depot.open(settings_for(base))
    recovery = await depot.recover()
    assert (recovery.found, recovery.removed) == ((), ("left",))
    await until(lambda: not is_alive(pid), lambda: f"pid 1 ({pid}) lives")
    await nothing_left(depot.settings)
    assert leases_in_use(depot) == 0
    await depot.close()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b'{"version": 0}',
        b'{"version": 1}',
        b"\xff" * 100,
        b"[" * 100_000,
    ],
)
async def test_a_damaged_snapshot_removes_the_container(left: Path, damage: bytes) -> None:
    """Nothing is guessed: a container that cannot be described is ended, whatever it is doing."""
    directory = settings_for(left).depot_dir / "left"
    pid = snapshot.read(directory).pid
    (directory / snapshot.FILE_NAME).write_bytes(damage)
    await removes_it_whole(left, pid)


async def test_a_container_of_a_later_version_is_left_alone(left: Path) -> None:
    """It lives, has its network and its leases, and nobody else gets any of it; its own version finds it again."""
    directory = settings_for(left).depot_dir / "left"
    known = snapshot.read(directory)
    ours = (directory / snapshot.FILE_NAME).read_bytes()
    later = json.dumps(json.loads(ours) | {"version": 2, "phase": "asleep"}).encode()
    (directory / snapshot.FILE_NAME).write_bytes(later)
    depot = await Depot.open(settings_for(left))

    recovery = await depot.recover()

    assert (recovery.found, recovery.removed, recovery.left_alone) == ((), (), ("left",))
    assert depot.handles() == ()
    assert is_alive(known.pid)
    assert leases_in_use(depot) == 2
    assert links() == [interface_of(known.link_id)]
    assert known.link_id in depot._shared.cgroups.list()
    assert (directory / snapshot.FILE_NAME).read_bytes() == later
    await depot.close(remove_tables=True)
    (directory / snapshot.FILE_NAME).write_bytes(ours)
    again = await Depot.open(settings_for(left))
    assert (await again.recover()).found == ("left",)
    assert (await again.find("left").run(sh("echo on"))).stdout == b"on\n"
    await again.close()


async def test_a_wshd_of_a_later_version_is_left_alone(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody answers, in words that are not ours: alive, so it is not ended."""
    directory = settings_for(left).depot_dir / "left"
    pid = snapshot.read(directory).pid
    monkeypatch.setattr(wshd, "VERSION", 0)  # then the one that runs is later
    depot = await Depot.open(settings_for(left))

    recovery = await depot.recover()

    assert (recovery.found, recovery.left_alone) == ((), ("left",))
    assert is_alive(pid)
    await depot.close()


async def test_a_container_half_made_is_removed(left: Path) -> None:
    """A snapshot that says it was being made, with everything there already."""
    old = rewrite(left, lambda found: msgspec.structs.replace(found, phase=Phase.MAKING, pid=0))
    await removes_it_whole(left, old.pid)


async def test_one_of_another_boot_is_removed(left: Path) -> None:
    """Its pid means nothing any more."""
    old = rewrite(left, lambda found: msgspec.structs.replace(found, boot_id="of yesterday"))
    await removes_it_whole(left, old.pid)


async def test_a_pid_that_was_given_away_is_left_alone(left: Path) -> None:
    """The number in the snapshot is another process by now: that one lives on, the container goes."""
    born = rewrite(left, lambda found: found).pid_start_ticks
    ticks_a_s = os.sysconf(
        "SC_CLK_TCK"
    )  # two processes of one tick cannot be told apart, nor have one number
    await until(
        lambda: time.clock_gettime(time.CLOCK_BOOTTIME) * ticks_a_s > born + 2, lambda: "the clock stands"
    )
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        old = rewrite(left, lambda found: msgspec.structs.replace(found, pid=stranger.pid))
        await removes_it_whole(left, old.pid)
        assert stranger.poll() is None
        stranger.kill()


async def test_a_directory_by_another_name_is_removed(left: Path) -> None:
    """A snapshot of some other container is no description of this one."""
    old = rewrite(left, lambda found: msgspec.structs.replace(found, handle="somebody"))
    await removes_it_whole(left, old.pid)


async def test_a_snapshot_half_written_costs_nothing(left: Path) -> None:
    """The new file beside the old one, as a manager killed in the middle leaves it."""
    (settings_for(left).depot_dir / "left" / (snapshot.FILE_NAME + ".new")).write_bytes(b'{"ver')
    depot = await Depot.open(settings_for(left))
    assert (await depot.recover()).found == ("left",)
    assert (await depot.find("left").run(sh("echo on"))).stdout == b"on\n"
    await depot.close()


async def test_a_depot_in_use_is_refused_and_untouched(left: Path) -> None:
    """A second manager gets its refusal before it has looked at anything; the first goes on."""
    first = await Depot.open(settings_for(left))
    await first.recover()
    with pytest.raises(DepotBusy, match="another manager"):
        await Depot.open(settings_for(left))
    assert (await first.find("left").run(sh("echo on"))).stdout == b"on\n"
    await first.close()


async def test_jobs_and_their_output_are_seen_again(left: Path) -> None:
    """Ended, running, waiting for a reader, and stopped at its limit: each as it was, from the first byte."""
    first = await Depot.open(settings_for(left))
    await first.recover()
    box = first.find("left")
    await (await box.spawn(sh("echo out; echo err >&2; exit 5", job_id="ended"))).wait()
    await (await box.spawn(sh("yes", job_id="over", output=Output(4096, Past.KILL)))).wait()
    await box.spawn(
        sh("head -c 10000 /dev/zero; echo end >&2", job_id="blocked", output=Output(4096, Past.BLOCK))
    )
    running = await box.spawn(
        sh("echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9", job_id="running")
    )
    await anext(running.stream("stdout"))
    await first.close()

    second = await Depot.open(settings_for(left))
    await second.recover()
    box = second.find("left")
    jobs = box.jobs

    assert sorted(jobs) == ["blocked", "ended", "over", "running"]
    assert (await jobs["ended"].wait()).code == 5
    assert (await jobs["ended"].output("stdout"), await jobs["ended"].output("stderr")) == (
        b"out\n",
        b"err\n",
    )
    assert (await jobs["over"].wait()).overran
    assert len(await jobs["over"].output("stdout")) == 4096
    total = 0
    async for chunk in jobs["blocked"].stream("stdout"):
        total += len(chunk.data)
        await jobs["blocked"].trim("stdout", chunk.offset + len(chunk.data))
    assert total == 10_000
    assert await jobs["blocked"].output("stderr") == b"end\n"
    assert jobs["running"].status is None
    with pytest.raises(WshdError, match="EBUSY"):
        await box.forget("running")
    await box.run(sh("touch /tmp/go"))
    assert (await jobs["running"].wait()).code == 9
    assert (await (await box.spawn(sh("true"))).wait()).ok  # its own id is none of theirs
    await second.close()


async def test_a_job_on_pipes_of_a_former_manager_is_no_later_job(left: Path) -> None:
    """It lives on without files in the spool; a job of the next manager is not taken for it."""
    first = await Depot.open(settings_for(left))
    await first.recover()
    with await first.find("left").spawn_piped(sh("exec sleep 300")) as job:
        assert job.id == "1"
    await first.close()

    second = await Depot.open(settings_for(left))
    await second.recover()
    box = second.find("left")
    async with asyncio.timeout(30):
        assert (await box.run(sh("echo mine"))).stdout == b"mine\n"
    with pytest.raises(WshdError, match="EEXIST"):
        await box.spawn(sh("echo mine", job_id="1"))
    assert "1" not in box.jobs
    await second.close()


async def test_one_that_cannot_be_taken_up_costs_no_other(left: Path, stack: Path) -> None:
    """A snapshot that is well formed and names no cgroup, a spool that is gone, a cgroup that is nobody's: the rest is found."""
    first = await Depot.open(settings_for(left))
    await first.recover()
    for handle in ("named", "spoolless"):
        await first.create(app(stack, handle=handle))
    await first.close()
    depot_dir = settings_for(left).depot_dir
    for file in (depot_dir / "spoolless/spool").iterdir():
        file.unlink()
    (depot_dir / "spoolless/spool").rmdir()
    snapshot.write(
        depot_dir / "named", msgspec.structs.replace(snapshot.read(depot_dir / "named"), link_id="../else")
    )
    strange = first._shared.cgroups.directory / "not one of ours"
    strange.mkdir()
    try:
        second = await Depot.open(settings_for(left))
        recovery = await second.recover()
    finally:
        strange.rmdir()

    assert recovery.found == ("left", "spoolless")
    assert (await second.find("left").run(sh("echo on"))).stdout == b"on\n"
    (depot_dir / "spoolless/spool").mkdir(mode=0o700)
    shutil.rmtree(depot_dir / "named", ignore_errors=True)
    await second.close()


async def test_a_host_that_is_short_of_descriptors_ends_no_app(left: Path) -> None:
    """The start is refused, not the container: the next one finds it as it was."""
    directory = settings_for(left).depot_dir / "left"
    pid = snapshot.read(directory).pid
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    depot = await Depot.open(settings_for(left))
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, hard))
    try:
        with pytest.raises(HostUnfit, match="Too many open files"):
            await depot.recover()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await depot.close()

    assert is_alive(pid)
    second = await Depot.open(settings_for(left))
    assert (await second.recover()).found == ("left",)
    await second.close()


async def test_a_spool_half_made_or_half_forgotten_is_no_job(left: Path) -> None:
    """Files that wshd never took, and those of which only the record is left, go at recover."""
    spool = settings_for(left).depot_dir / "left" / "spool"
    for name in ("never.record", "never.out", "never.err", "half.record"):
        (spool / name).touch()
    (spool / "half.record").write_text("exit 0\nend\n")
    depot = await Depot.open(settings_for(left))
    await depot.recover()

    assert dict(depot.find("left").jobs) == {}
    assert list(spool.iterdir()) == []
    await depot.close()


async def test_a_container_that_dies_while_it_is_taken_up(
    left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pid 1 answers, and is dead when its jobs are asked for: lost jobs, and no failed start."""
    first = await Depot.open(settings_for(left))
    await first.recover()
    job = await first.find("left").spawn(sh("echo begun; exec sleep 1000", job_id="job"))
    await anext(job.stream("stdout"))
    await first.close()
    recover_jobs = Depot._recover_jobs

    async def after_its_death(depot: Depot, body: Body) -> None:
        os.kill(body.parts.pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PIDFD, body.parts.pidfd, os.WEXITED | os.WNOWAIT)
        await recover_jobs(depot, body)

    monkeypatch.setattr(Depot, "_recover_jobs", after_its_death)
    second = await Depot.open(settings_for(left))
    assert (await second.recover()).found == ("left",)
    box = second.find("left")
    await asyncio.wait_for(box.wait_dead(), 20)

    assert box.state is ContainerState.DEAD
    assert (await box.jobs["job"].wait()).lost
    assert await box.jobs["job"].output("stdout") == b"begun\n"
    await second.close()


async def test_limits_ports_and_state_survive(left: Path) -> None:
    """What was changed while it ran, and that it was stopped."""
    first = await Depot.open(settings_for(left))
    await first.recover()
    box = first.find("left")
    await box.limit_memory(48 << 20)
    await box.limit_disk(32 << 20)
    await box.stop(0)
    limits = box.limits
    await first.close()

    second = await Depot.open(settings_for(left))
    await second.recover()
    box = second.find("left")
    assert box.limits == limits == replace(limits, memory_bytes=48 << 20, disk_bytes=32 << 20)
    assert box.state is ContainerState.STOPPED
    assert (await box.info()).memory_limit_bytes == 48 << 20
    await second.close()


async def test_one_whose_disk_is_not_mounted_is_removed(left: Path) -> None:
    """Somebody unmounted it: its limit would not hold any more, and a mount of it is refused by the kernel."""
    old = rewrite(left, lambda found: found)
    disk = settings_for(left).depot_dir / "left" / "disk"
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    await removes_it_whole(left, old.pid)


async def test_ids_that_two_claim_belong_to_the_first(left: Path) -> None:
    """The second is removed, and what the first has is given to nobody else."""
    depot_dir = settings_for(left).depot_dir
    twin = depot_dir / "twin"
    (twin / "spool").mkdir(parents=True)
    found = rewrite(left, lambda found: found)
    snapshot.write(twin, msgspec.structs.replace(found, handle="twin", link_id="00000000000"))

    depot = await Depot.open(settings_for(left))
    recovery = await depot.recover()

    assert (recovery.found, recovery.removed) == (("left",), ("twin",))
    assert leases_in_use(depot) == 2
    assert (await depot.find("left").run(sh("echo on"))).stdout == b"on\n"
    await close_empty(depot)
