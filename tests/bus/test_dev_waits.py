"""The long poll of an app at the development controller, over a real nats-server, with a fake agent as peer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from dev_kit import World
from dev_kit import world as world

from agent.dev import placement, records

pytestmark = pytest.mark.bus

PATH = "/v1/apps/hello"
Row = dict[str, Any]


async def asked(world: World, **query: str) -> tuple[Row, str]:
    """The app's row, and the number of changes to wait from."""
    async with world.http.get(world.base + PATH, params=query) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json(), answer.headers["X-Garrison-Changes"]


async def followed(world: World, act: Awaitable[Any], is_there: Callable[[Row], bool]) -> Row:
    """The row that is there after ``act``, found by waits alone. A change that is not noticed lets the time run out."""
    row, number = await asked(world)
    waiting = asyncio.create_task(asked(world, after=number, wait_s="30"))
    await act
    async with asyncio.timeout(15):
        row, number = await waiting
        while not is_there(row):
            row, number = await asked(world, after=number, wait_s="30")
    return row


async def nothing() -> None:
    pass


async def test_a_row_is_answered_when_it_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an exit, a setting, a push, and a start for which there is no room. Heartbeats and adverts do it too, so that there are
    none meanwhile.
    """
    await world.pushed("hello")
    await followed(world, nothing(), lambda row: row["running"] == 1)
    scaled = world.call("POST", f"{PATH}/scale", json={"instances": 2})
    await followed(world, scaled, lambda row: row["running"] == row["instances"] == 2)
    monkeypatch.setattr(records, "HEARTBEAT_TTL_S", 1000)
    monkeypatch.setattr(placement, "ADVERT_TIMEOUT_S", 1000)
    monkeypatch.setattr(world.agent, "beat", nothing)

    instance, body = next(iter(world.agent.instances.items()))
    exited = {
        "droplet": body["droplet"], "version": body["version"], "instance": instance, "index": body["index"],
        "reason": "CRASHED", "exit_status": 3,
    }  # fmt: skip
    said = world.agent.say("droplet.exited", exited)
    await followed(world, said, lambda row: row["crash"] is not None and row["running"] == 1)

    await followed(world, world.call("POST", f"{PATH}/pushes", json={}), lambda row: row["pushing"])
    push = world.controller.pushes.all()[0].id
    given_up = world.call("DELETE", f"{PATH}/pushes/{push}")
    await followed(world, given_up, lambda row: not row["pushing"])

    world.controller.app("hello").memory_mb = 1 << 20
    scaled = world.call("POST", f"{PATH}/scale", json={"instances": 3})
    row = await followed(world, scaled, lambda row: "2" in row["waiting"])
    assert "MiB of memory" in row["waiting"]["2"]
    await followed(world, world.call("POST", f"{PATH}/stop"), lambda row: row["state"] == "stopped")
    await followed(world, world.call("POST", f"{PATH}/start"), lambda row: row["state"] != "stopped")


async def test_a_row_is_answered_when_a_host_falls_silent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock alone changes it: no message comes any more."""
    await world.pushed("hello")
    await followed(world, nothing(), lambda row: row["running"] == 1)

    async def silence() -> None:
        monkeypatch.setattr(world.agent, "beat", nothing)

    await followed(world, silence(), lambda row: row["running"] == 0)


async def test_an_app_that_is_deleted_during_a_wait_is_refused(world: World) -> None:
    """As it is to everybody who asks later."""
    await world.pushed("hello")
    _, number = await asked(world)
    query = {"after": str(int(number) + 10), "wait_s": "30"}  # of a controller before it: answered at once
    assert (await asked(world, **query))[0]["name"] == "hello"

    async def statuses() -> list[int]:
        found, number = list[int](), "0"
        while found[-1:] != [404]:
            query = {"after": number, "wait_s": "30"}
            async with world.http.get(world.base + PATH, params=query) as answer:
                found.append(answer.status)
                number = answer.headers.get("X-Garrison-Changes", "0")
        return found

    waiting = asyncio.create_task(statuses())
    await world.call("DELETE", PATH)
    async with asyncio.timeout(15):
        assert set(await waiting) <= {200, 404}


@pytest.mark.parametrize(
    ("app", "query", "status"),
    [
        ("hello", "after=1", 400),
        ("hello", "after=x&wait_s=1", 400),
        ("hello", "after=1&wait_s=31", 400),
        ("other", "after=0&wait_s=30", 404),
    ],
)
async def test_what_cannot_be_waited_for_is_refused_at_once(
    world: World, app: str, query: str, status: int
) -> None:
    """With the reason."""
    await world.pushed("hello")
    async with asyncio.timeout(15):
        async with world.http.get(f"{world.base}/v1/apps/{app}?{query}") as answer:
            assert answer.status == status
            assert "error" in await answer.json()
