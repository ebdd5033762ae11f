"""How an agent ends: after TERM nothing is left, whatever the apps do."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from driver import Host
from driver_apps import make_package

pytestmark = pytest.mark.bus
OpenHost = Callable[..., AbstractAsyncContextManager[Host]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_an_agent_that_is_asked_to_end_stops_its_apps_and_leaves_nothing(
    hosts: OpenHost, number: signal.Signals
) -> None:
    """No container, mount, link, rule, cgroup or process; the routes are taken back and no crash is told."""
    async with hosts() as host:
        bare = host.picture()
        await host.start_agent()
        first, second = host.make_app("first"), host.make_app("second")
        for app in (first, second):
            await host.run(app)
        since = host.peer.mark

        assert await host.stop_agent(number) == 0

        assert await host.left_since(bare) == []
        unregistered = {one.body["app"] for one in host.peer.on("router.unregister", since)}
        assert unregistered == {first.id, second.id}
        assert len(host.peer.on("dea.shutdown", since)) == 1
        assert host.peer.on("droplet.exited") == []
        assert host.peer.on("dea.advertise", since) == []


async def test_an_app_that_ignores_term_does_not_keep_its_agent_past_the_deadline(hosts: OpenHost) -> None:
    """The deadline is the agent's, however long the apps' grace."""
    grace_s = 600
    async with hosts(shutdown={"deadline_s": 6}, instance={"stop_grace_s": grace_s}) as host:
        bare = host.picture()
        await host.start_agent()
        running = await host.run(host.make_app("stubborn"))
        await host.ask_app(running["stats"]["port"], f"mask {signal.SIGTERM:d}")
        began = time.monotonic()

        assert await host.stop_agent() == 0

        assert time.monotonic() - began < grace_s / 2, "of the two the grace decided"
        assert await host.left_since(bare) == []


async def test_an_end_in_the_middle_of_a_start_leaves_nothing_of_it(hosts: OpenHost) -> None:
    """A download that has stalled is no reason to stay."""
    async with hosts() as host:
        bare = host.picture()
        await host.start_agent()
        app = host.make_app("half")
        with host.files.stalled(app.path) as reached:
            await host.start(app)
            await asyncio.wait_for(reached.wait(), 20)
            assert await host.stop_agent() == 0

        assert await host.left_since(bare) == []
        assert host.peer.on("droplet.exited") == []
        assert not list((host.base_dir / "layers").glob(".new-*"))


async def test_an_end_in_the_middle_of_a_staging_is_replied_to_its_requester(hosts: OpenHost) -> None:
    """The user's command must not hang until its time-out."""
    async with hosts() as host:
        bare = host.picture()
        await host.start_agent()
        app = host.make_app("staged")
        package = f"/packages/{app.id}"
        host.files.put(package, make_package(host.listener, app.id))
        message = host.staging_message(app)
        with host.files.stalled(package) as reached:
            await host.peer.say(f"staging.{host.dea}.start", message, "staged")
            await asyncio.wait_for(reached.wait(), 20)
            assert await host.stop_agent() == 0

        told = [one.body for one in host.peer.on("staged")]
        assert told == [{"task_id": message["task_id"], "error": "Error staging: task stopped"}]
        assert await host.left_since(bare) == []
