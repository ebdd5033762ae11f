"""An upgrade keeps the apps: this agent takes up what an agent of commit f8113c7 has left running."""

from __future__ import annotations

import signal
from pathlib import Path

import old_release
import pytest
from driver import Host, open_host

pytestmark = pytest.mark.bus


@pytest.fixture(scope="session")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old_release.unpack(tmp_path_factory.mktemp("old-release"))


async def test_apps_of_the_first_release_run_on(base_dir: Path, listener: bytes, old_tree: Path) -> None:
    """Running, crashed, stopping and starting ones, each in its state; their wshd is the old one and obeys."""
    async with open_host(base_dir, listener, {}) as host:
        await host.start_agent(tree=old_tree)
        dea = host.dea
        kept, crashed, stubborn, slow = (
            host.make_app(name) for name in ("kept", "crashed", "stubborn", "slow")
        )
        before = await host.run(kept)
        broken = await host.run(crashed)
        await host.ask_app(broken["stats"]["port"], "exit 3")
        await host.peer.wait_for("droplet.exited")
        ignoring = await host.run(stubborn)
        await host.ask_app(ignoring["stats"]["port"], f"mask {signal.SIGTERM:d}")
        await host.start(slow, start_command="sleep 6; exec ./listener")
        await host.running.wait_log("instance_spawned", app=slow.id)
        await host.stop(stubborn)
        await host.wait_remembered('"STOPPING"')
        await host.stop_agent(signal.SIGKILL)
        containers = host.containers()
        since = host.peer.mark

        await host.start_agent()

        assert host.dea == dea
        (after,) = await host.find(kept)
        names = ("instance", "version", "index", "state", "state_timestamp")
        assert [after[name] for name in names] == [before[name] for name in names]
        registered = await host.peer.wait_for(
            "router.register", lambda body: body["app"] == kept.id, since=since
        )
        assert registered.body["port"] == before["stats"]["port"]
        assert [one["state"] for one in await host.find(crashed)] == ["CRASHED"]
        await host.wait_gone(stubborn)
        await host.wait_state(slow, "RUNNING")
        assert set(host.containers()) < set(containers)
        assert [one.body["droplet"] for one in host.peer.on("droplet.exited")] == [crashed.id]
        await it_is_obeyed(host, kept.id, before["stats"]["port"], after["instance"])
        await host.stop(slow)
        await host.wait_depot_empty()


async def it_is_obeyed(host: Host, app_id: str, port: int, instance: str) -> None:
    """Its output is read from the first byte, and its end is seen."""
    assert f"listening on {port}" in await host.logs_of(instance)
    since = host.peer.mark
    await host.ask_app(port, "exit 5")
    exited = await host.peer.wait_for("droplet.exited", since=since)
    assert (exited.body["droplet"], exited.body["exit_status"]) == (app_id, 5)
