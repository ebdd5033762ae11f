"""An agent and `garrison warden` in one network namespace: either is killed and restarted while the other works."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import testhost
from driver import LOCAL_IP, Host, stack_dir
from warden_client import DESTROY, INFO, LIST, NET_IN, SPAWN, Client
from warden_process import WardenProcess

pytestmark = pytest.mark.bus
SERVE = b"cd /tmp && echo theirs > index.html && exec python3 -m http.server 8080"


OWN = "network: {pool_network: 10.253.0.0/24, release_delay: 0}\nport: {pool_start_port: 65100, pool_size: 100}\n"


@pytest_asyncio.fixture
async def warden(base_dir: Path) -> AsyncIterator[WardenProcess]:
    made = WardenProcess(base_dir, stack_dir() / "rootfs", rest=OWN)
    yield made
    if made.running is not None:
        await made.end(signal.SIGKILL)
    client = await made.start()
    for handle in (await client.call(LIST)).fields.get(1, []):
        await client.call(DESTROY, {1: handle})
    assert await made.end(signal.SIGTERM) == 0
    assert not list(made.depot.iterdir())


async def serve(client: Client) -> tuple[bytes, int]:
    """A container that serves the word "theirs" on a port of the host."""
    handle = await client.create()
    port = int((await client.call(NET_IN, {1: handle, 2: 8080}))[1])
    await client.call(SPAWN, {1: handle, 2: SERVE})
    await answers(port, "theirs")
    return handle, port


async def answers(port: int, word: str) -> None:
    found = ""
    for _ in range(100):
        try:
            reader, writer = await asyncio.open_connection(LOCAL_IP, port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        found = (await asyncio.wait_for(reader.read(), 10)).decode()
        writer.close()
        if word in found:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"port {port}: expected {word!r}, got {found!r}")


async def test_either_is_killed_and_restarted_while_the_other_works(
    host: Host, warden: WardenProcess
) -> None:
    """Nothing of the other is lost, and what it makes meanwhile works too."""
    app, second = host.make_app("shop"), host.make_app("second")
    running = await host.run(app)
    client = await warden.start()
    handle, port = await serve(client)
    await answers(running["stats"]["port"], "PORT=")

    await host.stop_agent(signal.SIGKILL)
    await answers(port, "theirs")
    _, other_port = await serve(client)
    await answers(running["stats"]["port"], "PORT=")

    async def both_serve() -> None:
        for one in (port, other_port):
            await answers(one, "theirs")

    since = host.peer.mark
    await host.start_agent()
    await host.peer.wait_for("router.register", since=since)
    await both_serve()
    await answers(running["stats"]["port"], "PORT=")

    await warden.end(signal.SIGKILL)
    again = await host.run(second)

    async def both_run() -> None:
        for one in (running, again):
            await answers(one["stats"]["port"], "PORT=")

    await both_run()
    await both_serve()
    client = await warden.start()
    assert (await client.call(INFO, {1: handle}))[10] == b"active"
    await both_serve()
    await both_run()
    assert host.peer.on("droplet.exited") == []


async def test_an_agent_that_ends_leaves_the_other_s_traffic(host: Host, warden: WardenProcess) -> None:
    """Its tables go, and forwarding stays open."""
    client = await warden.start()
    handle, port = await serve(client)
    await host.run(host.make_app("shop"))
    assert await host.stop_agent(signal.SIGTERM) == 0
    tables = testhost.run("nft", "list", "tables")
    assert ("table inet garrison" in tables, "table inet warden" in tables) == (False, True)
    await answers(port, "theirs")
    assert (await client.run(handle, "echo here"))[1] == b"here\n"
    await host.start_agent()


async def test_a_server_that_overlaps_is_refused_and_names_the_agent(host: Host, base_dir: Path) -> None:
    """With Warden's default pool, which lies in that of the agent."""
    assert host.agent is not None
    refused = WardenProcess(base_dir, stack_dir() / "rootfs")
    process = await refused.spawn()
    _, stderr = await asyncio.wait_for(process.communicate(), 30)
    text = stderr.decode() + refused.text()
    assert process.returncode == 1
    assert f"the depot {os.path.realpath(host.base_dir / 'depot')} (pid {host.agent.pid}) has: " in text
    assert "pool network 10.254.0.0/24 (theirs: 10.254.0.0/16)" in text
