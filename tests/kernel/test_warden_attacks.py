"""Containers and clients that mean harm, or that are only unlucky: the server goes on for everybody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from warden_client import COPY_IN, COPY_OUT, DESTROY, SPAWN, ServerError
from warden_kit import Warden
from warden_kit import rootfs as rootfs
from warden_kit import warden as warden

pytestmark = pytest.mark.kernel

#: More than there are threads that everybody shares, on any small host.
MANY = 12


async def test_a_container_that_stops_its_copies_stops_nobody_else(warden: Warden, tmp_path: Path) -> None:
    """Its tar neither reads nor writes, on many copies at once. Others run on, and a destroy ends the copies."""
    (tmp_path / "big").write_bytes(bytes(4 << 20))
    client = await warden.client()
    hostile, honest = await client.create(), await client.create()
    script = (
        "head -c 4000000 /dev/zero > big; while :; do for p in /proc/[0-9]*; do "
        'case "$(cat $p/comm 2>/dev/null)" in tar) kill -STOP ${p#/proc/};; esac; done; echo; done'
    )
    job = (await client.call(SPAWN, {1: hostile, 2: script.encode(), 5: 1}))[1]
    await warden.wrote(job)
    copying = [await warden.client() for _ in range(2 * MANY)]
    for one in copying[:MANY]:
        one.send(COPY_IN, {1: hostile, 2: str(tmp_path / "big").encode(), 3: b"/tmp/in/"})
    for number, one in enumerate(copying[MANY:]):
        one.send(COPY_OUT, {1: hostile, 2: b"/home/vcap/big", 3: f"{tmp_path}/out{number}".encode()})
    await asyncio.sleep(3)
    async with asyncio.timeout(10):
        assert await client.run(honest, "echo fine") == (0, b"fine\n", b"")
    await client.call(DESTROY, {1: hostile})
    stopped = 0
    for one in copying:
        try:
            await one.receive()
        except ServerError:
            stopped += 1
        await one.close()
    assert stopped, "not one tar was stopped: some may be done before the script sees them"
    await client.close()


async def test_many_honest_copies_at_once_all_end(warden: Warden, tmp_path: Path) -> None:
    """Each is larger than a pipe, so that both its ends must run at the same time."""
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    clients = [await warden.client() for _ in range(MANY)]
    handle = await clients[0].create()
    async with asyncio.timeout(60):
        await asyncio.gather(
            *(
                one.call(
                    COPY_IN, {1: handle, 2: str(tmp_path / "big").encode(), 3: f"/tmp/{number}".encode()}
                )
                for number, one in enumerate(clients)
            )
        )
    assert (await clients[0].run(handle, "cat /tmp/[0-9]* | wc -c"))[1] == b"%d\n" % (MANY * (3 << 20))
    for one in clients:
        await one.close()
