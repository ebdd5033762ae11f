"""Create, jobs, files, limits, destroy: the depot on the real kernel."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import tarfile
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import BOTH_BUILDS, app, sh, until
from depot_kit import depot as depot
from depot_kit import stack as stack

from container import (
    Access,
    BindMount,
    Container,
    ContainerEvent,
    ContainerState,
    Depot,
    FileEntry,
    JobSpec,
    Limits,
    Output,
    Past,
    SpecError,
    UnknownHandle,
    User,
    WrongState,
    WshdError,
)

pytestmark = [pytest.mark.kernel, BOTH_BUILDS]


@pytest_asyncio.fixture
async def box(depot: Depot, stack: Path) -> Container:
    return await depot.create(app(stack, handle="box", limits=Limits(memory_bytes=64 << 20, pids=64)))


async def test_a_job_runs_as_vcap_in_a_container_of_its_own(box: Container) -> None:
    """Ids, host name, pid namespace and the files below /etc are the container's."""
    result = await box.run(
        sh("id -u; id -g; hostname; cat /etc/hostname; cat /etc/resolv.conf; cat /etc/hosts")
    )

    assert result.status.code == 0, result.stderr
    lines = result.stdout.decode().splitlines()
    assert lines[:2] == ["2000", "2000"]
    assert lines[2] == lines[3] == box.link_id
    assert lines[4] == "nameserver 9.9.9.9"
    assert lines[-1] == f"{box.address} {box.link_id}"


async def test_ends_of_jobs(box: Container) -> None:
    """A code, a signal, and a program that is not there."""
    assert (await box.run(sh("exit 7"))).status.code == 7
    assert (await box.run(sh("kill -9 $$"))).status.signal == 9
    with pytest.raises(WshdError) as refused:
        await box.spawn(JobSpec(("/bin/absent",), cwd="/"))
    assert refused.value.name == "ENOENT"
    assert not box.jobs
    assert not os.listdir(box.directory / "spool")


async def test_input_and_both_outputs(box: Container) -> None:
    """Bytes in, bytes out, kept apart."""
    result = await box.run(sh("cat; echo oops >&2", stdin=b"x" * 100_000))

    assert (result.status.code, result.stdout, result.stderr) == (0, b"x" * 100_000, b"oops\n")


async def test_output_is_streamed_while_it_is_written(box: Container) -> None:
    """A follower sees a line before the job goes on."""
    job = await box.spawn(sh("mkfifo /tmp/gate; echo one; read line < /tmp/gate; echo two", user=User.ROOT))
    stream = job.stream("stdout")
    assert (await anext(stream)).data == b"one\n"
    await box.run(sh("echo > /tmp/gate", user=User.ROOT))
    rest = [chunk async for chunk in stream]

    assert b"".join(chunk.data for chunk in rest) == b"two\n"
    assert rest[0].offset == 4
    assert (await job.wait()).code == 0


async def test_several_may_wait_and_a_signal_reaches_the_job(box: Container) -> None:
    """One end, told to all."""
    job = await box.spawn(sh("exec sleep 1000"))
    waiters = [asyncio.create_task(job.wait()) for _ in range(3)]
    await job.signal(signal.SIGTERM)

    assert [status.signal for status in await asyncio.gather(*waiters)] == [15, 15, 15]
    await box.forget(job.id)
    assert not box.jobs


async def test_a_running_job_is_not_forgotten(box: Container) -> None:
    """EBUSY."""
    job = await box.spawn(sh("exec sleep 1000"))
    with pytest.raises(WshdError) as refused:
        await box.forget(job.id)
    assert refused.value.name == "EBUSY"


async def test_fifty_late_readers_get_all_of_a_mebibyte(box: Container) -> None:
    """The output lies in files: who comes late reads the same bytes."""
    job = await box.spawn(sh("dd if=/dev/zero bs=1024 count=1024 2>/dev/null | tr '\\0' x"))
    assert (await job.wait()).code == 0
    outputs = await asyncio.gather(*(job.output("stdout") for _ in range(50)))

    assert {len(output) for output in outputs} == {1 << 20}
    assert set(outputs) == {b"x" * (1 << 20)}


async def test_the_oldest_output_is_dropped_and_the_gap_told(box: Container) -> None:
    """Offsets stay true: what is left is the end."""
    output = Output(1 << 20, Past.DROP_OLDEST)
    job = await box.spawn(sh("i=0; while [ $i -lt 500000 ]; do echo $i; i=$((i+1)); done", output=output))
    assert (await job.wait()).code == 0
    chunks = [chunk async for chunk in job.stream("stdout", follow=False)]
    whole = b"".join(b"%d\n" % number for number in range(500_000))

    assert job.size_bytes("stdout") == len(whole)
    assert chunks[0].gap_bytes == chunks[0].offset > 0
    kept = b"".join(chunk.data for chunk in chunks)
    assert whole.endswith(kept)
    # Dropped in steps of an eighth of the limit (docs/wshd.md, "Output"), and the pipe may hold as much again as 64 KiB.
    assert (1 << 20) * 3 // 4 < len(kept) <= (1 << 20) * 5 // 4


async def test_past_its_limit_a_job_is_killed(box: Container) -> None:
    """Warden's way."""
    job = await box.spawn(sh("yes", output=Output(65536, Past.KILL)))

    status = await asyncio.wait_for(job.wait(), 10)

    assert status.overran
    assert status.number == 255
    assert "command exceeded maximum output" in box.events.kinds


async def test_past_its_limit_a_job_waits_for_its_reader(box: Container) -> None:
    """Nothing is lost, and trim lets it go on."""
    job = await box.spawn(
        sh("dd if=/dev/zero bs=65536 count=32 2>/dev/null", output=Output(262144, Past.BLOCK))
    )
    total = 0
    async for chunk in job.stream("stdout"):
        assert chunk.gap_bytes == 0
        total += len(chunk.data)
        await job.trim("stdout", chunk.offset + len(chunk.data))

    assert total == 32 * 65536
    assert (await job.wait()).code == 0


async def test_stop_ends_the_processes_and_leaves_the_files(depot: Depot, stack: Path) -> None:
    """After stop no job is taken, but files are read; after destroy nothing is."""
    box = await depot.create(app(stack))
    job = await box.spawn(sh("echo kept > /home/vcap/file; trap '' TERM; echo up; while :; do sleep 1; done"))
    await anext(job.stream("stdout"))

    await box.stop(0.1)

    assert box.state is ContainerState.STOPPED
    assert (await job.wait()).signal == 9
    with pytest.raises(WrongState):
        await box.spawn(sh("true"))
    assert await box.read_file("/home/vcap/file", 100) == b"kept\n"
    await depot.destroy(box.handle)
    await depot.destroy(box.handle)
    with pytest.raises(WrongState):
        await box.read_file("/home/vcap/file", 100)
    with pytest.raises(UnknownHandle):
        depot.find(box.handle)


async def test_a_dead_pid_1_is_seen_and_its_files_are_still_there(depot: Depot, stack: Path) -> None:
    """An unfinished job is lost, a finished one keeps its end; events say so."""
    box = await depot.create(app(stack, home_layers=(stack / "etc",)))
    done = await box.spawn(sh("echo hello > /home/vcap/file; exit 3"))
    await done.wait()
    open_job = await box.spawn(sh("exec sleep 1000"))
    events = box.events.subscribe()
    heard: asyncio.Task[ContainerEvent] = asyncio.create_task(anext(events))
    await asyncio.sleep(0)

    os.kill(box.pid, signal.SIGKILL)
    await asyncio.wait_for(box.wait_dead(), 5)

    assert box.state is ContainerState.DEAD
    assert (await heard).kind == "dead"
    assert (await done.wait()).code == 3
    assert (await open_job.wait()).lost
    assert await box.read_file("/home/vcap/file", 100) == b"hello\n"
    assert (await box.info()).state is ContainerState.DEAD


async def test_the_home_is_the_droplet_over_the_stack_s_own(
    depot: Depot, stack: Path, tmp_path: Path
) -> None:
    """Written by vcap, seen through the ids of the range; the layers stay as they were."""
    droplet = tmp_path / "droplet"
    (droplet / "app").mkdir(parents=True)
    (droplet / "app" / "main").write_text("droplet\n")
    for path in (droplet, droplet / "app", droplet / "app" / "main"):
        os.chown(path, 2000, 2000)
    box = await depot.create(app(stack, home_layers=(droplet,)))

    result = await box.run(
        sh(
            "cat app/main from-stack; stat -c %u app/main .; "
            "echo new > app/new && mv app app2 && cat app2/new",
            cwd="/home/vcap",
        )
    )

    assert (result.stdout, result.stderr) == (b"droplet\nstack\n2000\n2000\nnew\n", b"")
    assert not (droplet / "app" / "new").exists()


async def test_copy_in_and_out(box: Container) -> None:
    """Tar streams by a job inside."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("dir/hello")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    await box.copy_in(packed.getvalue(), "/home/vcap")
    await box.write_files(FileEntry("/home/vcap/new/deep/file", b"data", 0o600))
    check = await box.run(
        sh("cat /home/vcap/dir/hello; stat -c '%u %a' /home/vcap/new/deep/file /home/vcap/dir/hello")
    )
    assert check.stdout == b"hello2000 600\n2000 644\n"

    with open(os.memfd_create("out"), "w+b") as out:
        await box.copy_out("/home/vcap/dir", out.fileno())
        out.seek(0)
        with tarfile.open(fileobj=out) as tar:
            assert sorted(tar.getnames()) == ["./dir", "./dir/hello"] or sorted(tar.getnames()) == [
                "dir",
                "dir/hello",
            ]


async def test_no_link_leads_a_reader_out_of_the_container(box: Container, tmp_path: Path) -> None:
    """Absolute links, dots, magic links, FIFOs and devices."""
    secret = tmp_path / "secret"
    secret.write_text("host")
    made = await box.run(
        sh(
            f"cd /tmp; ln -s {secret} abs; ln -s ../../../../../../../../..{secret} rel;"
            "ln -s / rootdir;"
            "mkfifo fifo;"
            "ln -s /proc/1/root magic; ln -s loop loop; ln -s /etc/passwd ok; echo inside > plain",
            user=User.ROOT,
        )
    )
    assert made.status.ok, made.stderr
    for path in (
        "abs",
        "rel",
        f"rootdir{secret}",
        "fifo",
        "loop",
        f"magic{secret}",
        "../dev/zero",
        f"../../..{secret}",
    ):
        with pytest.raises(OSError):
            await box.read_file(f"/tmp/{path}", 100)
    assert await box.read_file("/tmp/plain", 100) == b"inside\n"
    assert b"vcap" in await box.read_file("/tmp/ok", 1000)
    with pytest.raises(OSError):
        await box.write_files(FileEntry("/tmp/loop/x", b""))


async def test_out_of_memory_takes_the_job_and_not_wshd(box: Container) -> None:
    """The event is told, the container lives."""
    job = await box.spawn(sh("exec tail /dev/zero"))

    assert (await asyncio.wait_for(job.wait(), 30)).signal == 9
    await until(lambda: "out of memory" in box.events.kinds, lambda: "no event")
    assert (await box.run(sh("echo alive"))).stdout == b"alive\n"
    assert (await box.info()).oom_kills >= 1


async def test_a_fork_bomb_is_bounded_and_stopped(box: Container) -> None:
    """pids holds it, stop ends it."""
    await box.spawn(sh("exec fork-bomb"))
    await until(lambda: box._body.cgroup.pids() == 64, lambda: "the bomb did not go off")

    assert (await box.info()).pids <= 64
    await asyncio.wait_for(box.stop(0), 20)
    assert (await box.info()).pids == 0


async def test_a_full_disk_is_the_container_s_own(depot: Depot, stack: Path) -> None:
    """ENOSPC inside, usage told, output still flows, and a raised limit helps at once."""
    box = await depot.create(app(stack, limits=Limits(disk_bytes=8 << 20, disk_max_bytes=32 << 20)))
    full = await box.run(sh("dd if=/dev/zero of=/home/vcap/big bs=65536 count=400 2>&1; echo end"))
    assert b"No space left" in full.stdout
    assert full.stdout.endswith(b"end\n")
    usage = (await box.info()).disk_bytes
    assert 4 << 20 <= usage <= 9 << 20

    await box.limit_disk(32 << 20)
    more = await box.run(sh("dd if=/dev/zero of=/home/vcap/big bs=65536 count=300 2>/dev/null && echo fits"))
    assert more.stdout == b"fits\n"


async def test_binds(depot: Depot, stack: Path, tmp_path: Path) -> None:
    """Read-only is read-only, and a missing mount point is made."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("host\n")
    shared.chmod(0o777)
    binds = (BindMount(shared, "/mnt/ro"), BindMount(shared, "/mnt/rw", Access.READ_WRITE))
    box = await depot.create(app(stack, binds=binds))

    result = await box.run(
        sh(
            "cat /mnt/ro/file; echo x > /mnt/ro/new 2>/dev/null || echo refused;"
            "echo y > /mnt/rw/new && echo written"
        )
    )

    assert result.stdout == b"host\nrefused\nwritten\n"


async def test_a_terminal(box: Container) -> None:
    """A pty of the container's own, with its size."""
    job = await box.spawn_terminal(sh("stty size; exec cat"), 33, 99)
    os.set_blocking(job.master, True)
    data = b""
    while b"\n" not in data:
        data += await asyncio.to_thread(os.read, job.master, 1000)
    assert data.split() == [b"33", b"99"]
    await job.signal(signal.SIGHUP)
    assert (await job.wait()).signal == signal.SIGHUP
    os.close(job.master)


async def test_a_handle_is_given_once(depot: Depot, stack: Path, box: Container) -> None:
    """Also when both are being made at the same time."""
    with pytest.raises(SpecError):
        await depot.create(app(stack, handle="box"))
    both = await asyncio.gather(
        depot.create(app(stack, handle="x")), depot.create(app(stack, handle="x")), return_exceptions=True
    )
    assert [type(one) for one in both].count(SpecError) == 1


async def test_twenty_at_once(depot: Depot, stack: Path) -> None:
    """All are made, all answer, all go."""
    boxes = await asyncio.gather(*(depot.create(app(stack)) for _ in range(20)))
    results = await asyncio.gather(*(box.run(sh("echo $PPID; hostname")) for box in boxes))

    assert [r.stdout.decode().split()[1] for r in results] == [box.link_id for box in boxes]
    assert len({box.address for box in boxes}) == 20
    await asyncio.gather(*(depot.destroy(box.handle) for box in boxes))
    assert depot.handles() == ()


async def test_properties_and_limits_are_told(depot: Depot, stack: Path) -> None:
    """What was asked for is what is there."""
    box = await depot.create(app(stack, properties={"app": "x"}, limits=Limits(memory_bytes=32 << 20)))
    assert box.properties == {"app": "x"}
    assert (await box.info()).memory_limit_bytes == 32 << 20
    await box.limit_memory(48 << 20)
    assert box.limits.memory_bytes == 48 << 20


async def test_properties_can_be_replaced_and_any_user_may_run(depot: Depot, stack: Path) -> None:
    """The properties are the caller's own words; the user need not be in the stack's passwd."""
    box = await depot.create(app(stack, handle="x", properties={"a": "1"}))
    box.set_properties({"b": "2"})
    assert box.properties == {"b": "2"}
    result = await box.run(sh("id -u; id -g; echo $PATH", user=1234, env=()))
    assert result.stdout == b"1234\n1234\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    await box.destroy()
    with pytest.raises(WrongState):
        box.set_properties({})
