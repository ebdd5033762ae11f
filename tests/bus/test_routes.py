"""Routes as a router receives them: each in one spelling, from the newest message, and none that was taken back."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from driver import App, Host

pytestmark = pytest.mark.bus


async def update(host: Host, app: App, *uris: str) -> None:
    """Until the agent has applied it, and all that it published because of it is here."""
    await host.peer.say("dea.update", {"droplet": app.id, "uris": list(uris), "version": app.v1})
    await host.find(app)


def routes(host: Host, subject: str, since: int = 0) -> list[list[str]]:
    return [one.body["uris"] for one in host.peer.on(subject, since)]


async def test_spellings_of_one_route_are_one_route(host: Host) -> None:
    """An update that only changes the case, or drops a doublet, must not remove the live route."""
    app = host.make_app("shop", uris=("Shop.example.com", "shop.EXAMPLE.com", "shop.example.com/V1/"))
    running = await host.run(app)
    assert running["stats"]["uris"] == ["shop.example.com", "shop.example.com/v1"]
    assert routes(host, "router.register") == [["shop.example.com", "shop.example.com/v1"]]
    since = host.peer.mark

    await update(host, app, "SHOP.example.com", "shop.example.com/v1/?x=Y")
    await update(host, app, "shop.example.com/v1", "shop.example.com")

    assert host.peer.on("router.unregister") == []
    assert host.peer.on("router.register", since) == []


@pytest.mark.parametrize("phase", ["downloading", "health checking"])
async def test_an_update_reaches_an_instance_that_is_still_starting(host: Host, phase: str) -> None:
    """Its routes are those of the newest message, from its first register on; what it never registered is not taken back."""
    app = host.make_app("shop", uris=("gone.example.com", "kept.example.com"))
    with contextlib.ExitStack() as stalled:
        if phase == "downloading":
            asked = stalled.enter_context(host.files.stalled(app.path))
            await host.start(app)
            await asked.wait()
        else:
            await host.start(app, start_command="until [ -e go ]; do sleep 0.05; done; exec ./listener")
            await host.running.wait_log("instance_spawned", app=app.id)
        await update(host, app, "kept.example.com", "new.example.com")
    if phase == "health checking":
        (handle,) = host.containers()
        Path(f"/proc/{host.pid_of_container(handle)}/root/home/vcap/app/go").touch()
    await host.wait_state(app, "RUNNING")
    await host.find(app)

    assert routes(host, "router.register") == [["kept.example.com", "new.example.com"]]
    assert host.peer.on("router.unregister") == []


async def test_an_update_with_a_version_renames_an_instance_that_is_still_starting(host: Host) -> None:
    """As it does one that runs: the controller stops the old version and must not meet this one."""
    app = host.make_app("shop")
    with host.files.stalled(app.path) as asked:
        await host.start(app)
        await asked.wait()
        (before,) = await host.find(app)
        await host.peer.say("dea.update", {"droplet": app.id, "uris": list(app.uris), "version": app.v2})
        (after,) = await host.find(app)
    running: dict[str, Any] = await host.wait_state(app, "RUNNING")

    assert (before["version"], after["version"], running["version"]) == (app.v1, app.v2, app.v2)
    assert before["instance"] != after["instance"] == running["instance"]
