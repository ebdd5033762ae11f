"""Starts that wait for the memory of stopping instances: each gets its own, in the order in which the starts came."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from driver import Host
from driver_peer import Word

pytestmark = pytest.mark.bus
OpenHost = Callable[..., AbstractAsyncContextManager[Host]]
LIMITS = {"mem": 128, "disk": 64}


def lines(host: Host, app: str) -> list[tuple[str, int]]:
    """What became of the app's instances: event and index, in the order of the log."""
    events = {"instance_stopped": "stopped", "instance_spawned": "spawned"}
    found: list[dict[str, Any]] = [line for name in events for line in host.running.log(name, app=app)]
    found.sort(key=lambda line: line["timestamp"])
    return [(events[line["event"]], line["index"]) for line in found]


async def test_capacity_for_one_instance_is_given_to_one(hosts: OpenHost) -> None:
    """Of two predecessors one takes its time: only the first start has room when the other has gone, the second has it later."""
    async with hosts(resources={"memory_mb": 256}, instance={"stop_grace_s": 3}) as host:
        await host.start_agent()
        app = host.make_app("shop")
        await host.run(app, 0, limits=LIMITS)
        slow = await host.run(app, 1, limits=LIMITS)
        await host.ask_app(slow["stats"]["port"], f"mask {signal.SIGTERM:d}")

        stop = Word.of("dea.stop", {"droplet": app.id, "version": app.v1})
        successor = {"version": app.v2, "limits": LIMITS}
        await host.peer.burst(
            [stop, host.start_word(app, 0, **successor), host.start_word(app, 1, **successor)]
        )
        for index in (0, 1):
            await host.wait_state(app, "RUNNING", index=index, version=app.v2)

        assert len(host.running.log("start_waits_for_predecessor", app=app.id)) == 2
        assert host.running.log("start_refused", app=app.id) == []
        assert lines(host, app.id)[2:] == [("stopped", 0), ("spawned", 0), ("stopped", 1), ("spawned", 1)]
