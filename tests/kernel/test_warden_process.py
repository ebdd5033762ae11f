"""`garrison warden` as a process: its configuration file, its signals, and what it leaves behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import links, until
from warden_client import DESTROY, INFO, LINK, LIST, SPAWN
from warden_kit import rootfs as rootfs
from warden_process import WardenProcess

pytestmark = pytest.mark.kernel


LANG = "de_DE.UTF-8"


@pytest_asyncio.fixture
async def process(tmp_path: Path, rootfs: Path) -> AsyncIterator[WardenProcess]:
    server = f"unix_domain_permissions: 0777, pidfile: {tmp_path / 'w.pid'}, unheard_of: 1"
    rest = "health_check_server: {port: 2345}\nnetwork: {pool_network: 10.254.7.0/24, release_delay: 0}\n"
    made = WardenProcess(tmp_path, rootfs, server=server, rest=rest)
    yield made
    if made.running is not None:
        await made.end(signal.SIGKILL)
    client = await made.start()
    for handle in (await client.call(LIST)).fields.get(1, []):
        await client.call(DESTROY, {1: handle})
    assert await made.end(signal.SIGTERM) == 0
    assert not list(made.depot.iterdir())
    await until(lambda: not links(), lambda: f"left: {links()}")


async def test_a_drain_ends_it_with_0_and_the_next_one_takes_everything_up(process: WardenProcess) -> None:
    """Socket mode, pidfile, health, LANG, and a key that nobody reads."""
    client = await process.start(LANG=LANG)
    assert process.running is not None
    pidfile = process.config.with_name("w.pid")
    assert process.socket.stat().st_mode & 0o777 == 0o777
    assert pidfile.read_text() == f"{process.running.pid}\n"
    assert '"key":"server.unheard_of"' in process.text()
    reader, writer = await asyncio.open_connection("127.0.0.1", 2345)
    writer.write(b"anything")
    assert await reader.read() == b"HTTP/1.1 200 OK\r\n"
    writer.close()

    handle = await client.create(handle=b"kept")
    assert (await client.run(handle, "echo $LANG"))[1] == b"de_DE.UTF-8\n"
    job = (await client.call(SPAWN, {1: handle, 2: b"sleep 2; echo over; exit 3"}))[1]
    assert await process.end(signal.SIGUSR2) == 0
    assert await client.reader.read() == b""
    assert not pidfile.exists()

    client = await process.start(LANG=LANG)
    assert (await client.call(INFO, {1: handle}))[10] == b"active"
    linked = await client.call(LINK, {1: handle, 2: job})
    assert (linked[1], linked[2]) == (3, b"over\n")


async def test_a_kill_loses_nothing(process: WardenProcess) -> None:
    client = await process.start(LANG=LANG)
    handle = await client.create(handle=b"kept")
    job = (await client.call(SPAWN, {1: handle, 2: b"echo out; exit 4"}))[1]
    await process.end(signal.SIGKILL)
    client = await process.start(LANG=LANG)
    linked = await client.call(LINK, {1: handle, 2: job})
    assert (linked[1], linked[2]) == (4, b"out\n")


async def test_a_configuration_that_cannot_be_used_is_refused(process: WardenProcess) -> None:
    """With the file and the key, and an exit status."""
    bad = process.config.with_name("bad.yml")
    bad.write_text(process.config.read_text().replace("unheard_of: 1", "allow_nested_warden: true"))
    run = await process.spawn(bad)
    _, stderr = await asyncio.wait_for(run.communicate(), 30)
    assert run.returncode == 1
    assert f"{bad}: server.allow_nested_warden".encode() in stderr
