"""The whole agent on a real bus with a depot in memory, without any capability: it needs root only for its host parts.

So the state machines, the memory, the bus and the messages are tested apart from the kernel.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from conftest import OpenHost
from driver import Host, poll
from driver_apps import make_package

pytestmark = pytest.mark.bus

#: uid 0 without capabilities: the files of the checkout can be read, and nothing of the host can be changed.
WITHOUT_ROOT = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
PROGRAM = (*WITHOUT_ROOT, sys.executable, str(Path(__file__).with_name("memory_agent.py")))


def effective_capabilities(pid: int) -> int:
    """See proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapEff")).split()[1], 16)


async def on_bus(host: Host, subject: str, since: int) -> dict[str, object]:
    found = await host.peer.wait_for(subject, since=since, within_s=20)
    assert isinstance(found.body, dict)
    return found.body


async def test_start_crash_stop_and_evacuate_need_no_root(hosts: OpenHost) -> None:
    """Routes, heartbeats, answers, exits: as with containers of the kernel."""
    async with hosts(local_ip="127.0.0.1") as host:
        agent = await host.start_agent(by=PROGRAM)
        assert effective_capabilities(agent.pid) == 0
        shop, broken = host.make_app("shop"), host.make_app("broken")

        since = host.peer.mark
        running = await host.run(shop, start_command="serve")
        register = await on_bus(host, "router.register", since)
        assert register["port"] == running["stats"]["port"]
        assert register["uris"] == list(shop.uris)
        beat = await on_bus(host, "dea.heartbeat", host.peer.mark)
        assert [one["state"] for one in beat["droplets"]] == ["RUNNING"]  # type: ignore[attr-defined]
        assert await host.logs_of(running["instance"]) == "serving\n"

        since = host.peer.mark
        await host.start(broken, start_command="crash 7")
        exited = await on_bus(host, "droplet.exited", since)
        assert (exited["droplet"], exited["exit_status"]) == (broken.id, 7)
        assert "about to crash\n" in await host.logs_of(str(exited["instance"]))

        since = host.peer.mark
        await host.stop(shop)
        unregister = await on_bus(host, "router.unregister", since)
        assert unregister["port"] == register["port"]
        await host.wait_gone(shop)

        again = await host.run(shop, start_command="serve")
        since = host.peer.mark
        agent.signal(signal.SIGUSR2)
        await host.wait_state(shop, "EVACUATING")
        await on_bus(host, "dea.shutdown", since)
        await host.stop(shop)  # its replacement runs elsewhere
        assert await agent.wait_exited() == 0
        assert again["instance"] != running["instance"]


async def test_a_staging_needs_no_root(hosts: OpenHost) -> None:
    """Package in, droplet out, and the app that follows runs from it."""
    async with hosts(local_ip="127.0.0.1") as host:
        await host.start_agent(by=PROGRAM)
        app = host.make_app("staged")
        host.files.put(f"/packages/{app.id}", make_package(host.listener, "one"))
        message = host.staging_message(app)
        since = host.peer.mark
        await host.peer.say(f"staging.{host.dea}.start", message, "inbox.staging")
        await poll(lambda: len(host.peer.on("inbox.staging", since)) >= 2, 30)

        replies = [one.body for one in host.peer.on("inbox.staging", since)]
        assert [one.get("error") for one in replies] == [None, None], host.running.log_text()
        assert replies[-1]["detected_buildpack"] == "Memory"
        running = await host.wait_state(app, "RUNNING")
        assert await host.logs_of(running["instance"]) == "serving\n"
