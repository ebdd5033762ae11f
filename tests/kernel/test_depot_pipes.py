"""A job gets only pipes that were made for it; no other descriptor of the manager reaches it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import BOTH_BUILDS, app, sh, until
from depot_kit import depot as depot
from depot_kit import stack as stack

from container import Container, ContainerState, Depot, JobSpec, Limits, TooMuch, User

pytestmark = [pytest.mark.kernel, BOTH_BUILDS]

USERS = pytest.mark.parametrize("user", [User.VCAP, User.ROOT], ids=["vcap", "root"])
MIB = 1 << 20


@pytest_asyncio.fixture
async def box(depot: Depot, stack: Path) -> Container:
    return await depot.create(app(stack, handle="box", limits=Limits(disk_bytes=64 * MIB)))


async def asked(box: Container, spec: JobSpec, stdin: bytes = b"") -> tuple[bytes, str]:
    """Standard output and standard error of a job on pipes that is fed ``stdin``."""

    async def both() -> bytes:
        _, said = await asyncio.gather(job.pipe("stdin").send(stdin), job.pipe("stdout").beginning(MIB))
        return said

    with await box.spawn_piped(spec, "stdin", "stdout", "stderr") as job:
        out, status, errors = await job.run(both())
    assert status.ok, errors
    return out, errors


@USERS
async def test_a_job_can_open_its_streams_again(box: Container, user: User) -> None:
    """By /dev and by /proc/self/fd, as either user; what it sees there are pipes, and no path of the host."""
    out, errors = await asked(
        box,
        sh(
            "cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr;"
            "echo again > /proc/self/fd/1; for n in 0 1 2; do readlink /proc/$$/fd/$n >&2; done",
            user=user,
        ),
        b"fed\n",
    )
    assert out == b"fed\nout\nagain\n"
    first, *links = errors.splitlines()
    assert first == "err"
    assert len(links) == 3
    assert all(link.startswith("pipe:[") for link in links)


async def test_what_is_not_asked_for_is_dev_null(box: Container) -> None:
    """Without a pipe a stream leads nowhere, and certainly not to the manager's own."""
    with await box.spawn_piped(
        sh("readlink /proc/$$/fd/0; readlink /proc/$$/fd/2; ls /proc/self/fd"), "stdout"
    ) as job:
        out, status, _ = await job.run(job.pipe("stdout").beginning(MIB))
    assert status.ok
    assert out.split()[:2] == [b"/dev/null", b"/dev/null"]
    assert len(out.split()[2:]) == 4, "three streams, and the directory that ls reads"


@USERS
async def test_the_input_of_a_job_on_the_spool_cannot_be_changed(box: Container, user: User) -> None:
    """It can be opened again and read from its start, by whoever runs; nobody writes to it."""
    result = await box.run(
        sh(
            "cat; cat /dev/stdin; cat /proc/self/fd/0;"
            "echo more >> /proc/self/fd/0 || echo refused; true > /proc/self/fd/0 || echo refused",
            user=user,
            stdin=b"fed\n",
        )
    )
    assert result.stdout == b"fed\nfed\nfed\nrefused\nrefused\n"


async def test_the_counter_ends_what_has_no_end(box: Container) -> None:
    """A sparse file is terabytes to tar: no byte past the limit is written, and tar is ended."""
    made = await box.run(sh("truncate -s 1099511627776 /home/vcap/sparse"))
    assert made.status.ok, made.stderr
    with open(os.memfd_create("out"), "w+b") as out:
        with pytest.raises(TooMuch, match="more than 3145728 bytes"):
            await box.copy_out("/home/vcap/sparse", out.fileno(), limit_bytes=3 * MIB)
        assert out.seek(0, os.SEEK_END) <= 3 * MIB
    await until(lambda: box._body.cgroup.pids() == 0, lambda: "tar goes on")


async def test_who_holds_a_pipe_holds_up_nobody(box: Container) -> None:
    """What a job leaves behind may keep its streams open for ever: the job's end is the end of them."""
    with await box.spawn_piped(sh("sleep 600 & echo said; echo why >&2"), "stdin", "stdout", "stderr") as job:
        out, status, errors = await asyncio.wait_for(job.run(job.pipe("stdout").beginning(MIB)), 20)
    assert (out, status.code, errors) == (b"said\n", 0, "why")

    with await box.spawn_piped(sh("sleep 600 <&0 & exit 3"), "stdin") as job:
        _, status, _ = await asyncio.wait_for(job.run(job.pipe("stdin").send(bytes(8 * MIB))), 20)
    assert status.code == 3, "what nobody reads is not waited for"


async def test_a_large_input_comes_whole(box: Container) -> None:
    """More than a pipe holds, in the order it was given."""
    data = os.urandom(5 * MIB)
    out, _ = await asked(box, sh("sha1sum"), data)
    direct = await box.run(sh("sha1sum", stdin=data))
    assert out == direct.stdout


async def test_all_jobs_end_and_the_container_stays(box: Container) -> None:
    """Also those that left their session, that ignore TERM, that are stopped; the next job runs."""
    left = "trap '' TERM; while :; do sleep 600; done"
    await box.run(sh(f"setsid sh -c '{left.replace(chr(39), chr(34))}' & "))
    frozen = await box.spawn(sh("sleep 600"))
    await frozen.signal(19)
    running = await box.spawn(sh("exec sleep 600"))

    await asyncio.wait_for(box.end_jobs(0.1), 20)

    assert box.state is ContainerState.ACTIVE
    assert box._body.cgroup.pids() == 0
    assert (await frozen.wait()).signal is not None
    assert (await running.wait()).signal == 15
    assert (await box.run(sh("echo next"))).stdout == b"next\n"
