"""The development controller and gateway over a real nats-server, with a fake agent as peer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from dev_kit import DROPLET, DROPLET_SHA1, LOG, World, files_of, no_reply
from dev_kit import world as world

from agent.dev.controller import Controller

pytestmark = pytest.mark.bus


async def test_a_push_stages_and_starts_the_rest(world: World) -> None:
    """staging.stop goes first; index 0 is started by the host, 1 and 2 by the controller."""
    row = await world.pushed("hello", instances=3)
    await world.until(lambda: len(world.starts()) >= 2, "no starts")
    await world.until(lambda: len(world.agent.instances) == 3, "not three")
    subjects = [subject for subject, _ in world.agent.heard]
    assert subjects.index("staging.stop") < subjects.index("staging.host1.start")
    assert sorted(body["index"] for body in world.starts()) == [1, 2]
    assert {body["sha1"] for body in world.starts()} == {DROPLET_SHA1}
    assert row["uris"] == ["hello.localhost"]
    await asyncio.sleep(0.6)  # nothing more may be started in the next rounds
    assert len(world.starts()) == 2


async def test_scale_stop_start_delete(world: World) -> None:
    """Down by indices, stop by the app alone, start of all, delete of everything."""
    row = await world.pushed("hello", instances=2)
    await world.until(lambda: len(world.agent.instances) == 2, "not two")
    await world.call("POST", "/v1/apps/hello/scale", json={"instances": 1})
    await world.until(lambda: len(world.agent.instances) == 1, "not scaled down")
    stop = next(body for subject, body in world.agent.heard if subject == "dea.stop")
    assert stop["droplet"] == row["guid"]
    assert stop["indices"] == [1]
    await world.call("POST", "/v1/apps/hello/stop")
    await world.until(lambda: not world.agent.instances, "not stopped")
    assert world.agent.heard[-1] == ("dea.stop", {"droplet": row["guid"]})
    await world.call("POST", "/v1/apps/hello/start")
    await world.until(lambda: len(world.agent.instances) == 1, "not started again")
    await world.call("DELETE", "/v1/apps/hello")
    await world.until(lambda: not world.agent.instances, "not stopped at its deletion")
    assert await world.call("GET", "/v1/apps") == []


async def test_a_crashed_instance_is_started_again(world: World) -> None:
    """A droplet.exited, told twice, leads to one new start."""
    await world.pushed("hello")
    await world.until(
        lambda: world.controller.status(world.controller.app("hello"))["running"] == 1, "not up"
    )
    (instance, body) = world.agent.instances.popitem()
    told = {"cc_partition": "default", "droplet": body["droplet"], "version": body["version"],
            "instance": instance, "index": 0, "reason": "CRASHED", "exit_status": 1,
            "exit_description": "app instance exited", "crash_timestamp": 7}  # fmt: skip
    await world.agent.say("droplet.exited", told)
    await world.agent.say("droplet.exited", told)
    await world.until(lambda: len(world.agent.instances) == 1, "not started again")
    assert len(world.starts()) == 1
    crashes = world.controller.seen.crashes
    assert [crash.count for crash in crashes.values()] == [1]


@pytest.mark.parametrize(
    ("replies", "type_", "error"),
    [
        ([{"error": "Error staging: setup"}], "StagingError", "Error staging: setup"),
        (
            [
                {"error": None},
                {"error": "Script exited", "error_info": {"type": "NoAppDetectedError", "message": "none"}},
            ],
            "NoAppDetectedError",
            "none",
        ),
    ],
)
async def test_a_failed_staging_is_reported(
    world: World, replies: list[dict[str, Any]], type_: str, error: str
) -> None:
    """An error in either reply ends the staging with its type and words; nothing is started, and nothing is left of it."""
    world.stages_badly(*replies)
    last = (await world.events(await world.claimed("bad", memory_mb=64)))[-1]
    assert (last["event"], last["type"], last["error"]) == ("failed", type_, error)
    assert world.starts() == []
    assert await world.call("GET", "/v1/apps") == []
    assert files_of(world.controller.files) == []


async def test_a_failed_push_changes_nothing(world: World) -> None:
    """Settings, variables, package and droplet are those of the push before, which runs on and is looked after."""
    await world.pushed("hello", instances=2, memory_mb=64, set_env={"A": "1"})
    await world.until(lambda: len(world.agent.instances) == 2, "not two")
    before, started = world.everything(), len(world.starts())

    world.stages_badly(
        {"error": None}, {"error": "Script exited", "error_info": {"type": "T", "message": "no"}}
    )
    changes = {
        "instances": 5,
        "memory_mb": 1024,
        "buildpack": "phyton",
        "set_env": {"B": "2"},
        "unset_env": ["A"],
    }
    last = (await world.events(await world.claimed("hello", **changes)))[-1]

    assert (last["event"], last["error"]) == ("failed", "no")
    assert world.everything() == before
    del world.agent.instances[next(iter(world.agent.instances))]
    await world.until(lambda: len(world.agent.instances) == 2, "the lost one is not started again")
    again = world.starts()[started:]
    assert [body["limits"]["mem"] for body in again] == [64]
    assert "A=1" in again[0]["env"]


async def test_a_staging_without_its_droplet_is_none(world: World) -> None:
    """Success is told, but nothing, or something else, was uploaded: the app stays what it was."""
    await world.pushed("hello")
    before = world.everything()
    world.stages_badly({"error": None}, {"droplet_sha1": "abc", "detected_buildpack": "python"})
    last = (await world.events(await world.claimed("hello")))[-1]
    assert (last["event"], last["error"]) == ("failed", "the host did not upload a droplet")

    async def another(body: dict[str, Any]) -> list[dict[str, Any]]:
        await world.upload(body["upload_uri"], b"another")
        return [
            {"task_id": body["task_id"], "error": None},
            {"task_id": body["task_id"], "droplet_sha1": "abc"},
        ]

    world.agent.stage = another
    last = (await world.events(await world.claimed("hello")))[-1]
    assert (
        last["error"]
        == f"the uploaded droplet has the checksum {hashlib.sha1(b'another').hexdigest()}, expected abc"
    )
    assert world.everything() == before


async def test_a_push_cannot_come_back_from_its_end(world: World) -> None:
    """Given up, or its app deleted, while it is staged: what the host answers after that is not taken."""
    await world.pushed("hello")
    before = world.everything()
    for end in ("push", "app"):
        held, begun = asyncio.Event(), asyncio.Event()
        world.stages_well()
        well = world.agent.stage

        async def late(
            body: dict[str, Any], held: asyncio.Event = held, begun: asyncio.Event = begun, well: Any = well
        ) -> Any:
            begun.set()
            await held.wait()
            return await well(body)

        world.agent.stage = late
        path = await world.claimed("hello", memory_mb=64)
        staging = asyncio.create_task(world.events(path))
        await begun.wait()
        ending = asyncio.create_task(world.call("DELETE", path if end == "push" else "/v1/apps/hello"))
        await world.until(lambda: all(push.given_up for push in world.controller.pushes.all()), "goes on")
        held.set()
        last = (await staging)[-1]
        await ending
        assert (last["event"], last["error"]) == ("failed", "the push was given up")
        if end == "push":
            assert world.everything() == before
    assert await world.call("GET", "/v1/apps") == []
    assert files_of(world.controller.files) == []
    await world.until(lambda: not world.agent.instances, "what the host started anyway is not stopped")


async def test_one_push_at_a_time(world: World) -> None:
    """The second is refused before it has changed anything, and the first becomes the app, whole."""
    first = await world.claimed("hello", set_env={"WHO": "first"})
    async with world.http.post(
        f"{world.base}/v1/apps/hello/pushes", json={"set_env": {"WHO": "second"}}
    ) as refused:
        assert refused.status == 409
        assert "is being pushed already" in await refused.text()
    world.stages_well()
    version = first.rpartition("/")[2]
    early = await world.upload(f"{world.base}/staging/droplets/{version}/upload", b"nobody stages it yet")
    assert early[0] == 404
    assert (await world.events(first))[-1]["event"] == "staged"
    assert world.controller.app("hello").env == {"WHO": "first"}
    async with world.http.put(f"{world.base}{first}/package", data=b"late") as late:
        assert late.status == 404
    assert world.everything()[f"{world.controller.app('hello').version}.zip"] == b"zip"


async def test_a_push_takes_effect_on_what_the_app_is_then(world: World) -> None:
    """A scale during the staging is kept; what the push names is as it says."""
    await world.pushed("hello", instances=1, memory_mb=64, set_env={"A": "1", "B": "2"}, buildpack="python")
    held = asyncio.Event()
    world.stages_well()
    well = world.agent.stage

    async def slowly(body: dict[str, Any]) -> list[dict[str, Any]]:
        assert body["properties"]["environment"][:2] == ["B=2", "C=3"]
        assert "buildpack_key" not in body["properties"]
        await held.wait()
        return await well(body)

    world.agent.stage = slowly
    path = await world.claimed("hello", memory_mb=128, set_env={"C": "3"}, unset_env=["A"], buildpack=None)
    staging = asyncio.create_task(world.events(path))
    await world.call("POST", "/v1/apps/hello/scale", json={"instances": 3})
    assert (world.controller.app("hello").memory_mb, world.controller.app("hello").env["A"]) == (64, "1")
    held.set()
    assert (await staging)[-1]["event"] == "staged"
    app = world.controller.app("hello")
    assert (app.instances, app.memory_mb, app.env, app.buildpack) == (3, 128, {"B": "2", "C": "3"}, None)
    of_now = {f"{app.version}.zip", f"{app.version}.tgz", f"{app.guid}.tgz"}
    assert {path.name for path in files_of(world.controller.files)} == of_now, "the version before is gone"


async def test_a_push_that_is_given_up_leaves_nothing(world: World) -> None:
    """Before its staging and in it; also when who asked goes away in the middle of the upload."""
    await world.pushed("hello")
    before = world.everything()
    path = await world.claimed("hello", memory_mb=64)
    await world.call("DELETE", path)
    assert world.everything() == before

    path = await world.claimed("hello", memory_mb=64)
    staging = asyncio.create_task(world.events(path))  # the fake agent does not answer
    world.agent.stage = no_reply
    stops = len([1 for subject, _ in world.agent.heard if subject == "staging.stop"])
    await world.until(lambda: any(push.staging for push in world.controller.pushes.all()), "not being staged")
    given_up = asyncio.create_task(world.call("DELETE", path))
    await world.until(
        lambda: len([1 for subject, _ in world.agent.heard if subject == "staging.stop"]) > stops,
        "not stopped",
    )
    staging.cancel()
    given_up.cancel()
    await asyncio.gather(staging, given_up, return_exceptions=True)

    path = (await world.call("POST", "/v1/apps/other/pushes", json={}))["push"]

    async def endless() -> AsyncIterator[bytes]:
        yield b"beginning"
        await asyncio.sleep(60)

    upload = asyncio.create_task(
        world.call("PUT", f"/v1/apps/other/pushes/{path}/package", data=endless(), timeout=None)
    )
    await world.until(
        lambda: any(push.requests and push.is_new for push in world.controller.pushes.all()), "no upload"
    )
    upload.cancel()
    await asyncio.gather(upload, return_exceptions=True)
    await world.until(
        lambda: all(push.draft.name != "other" for push in world.controller.pushes.all()), "still claimed"
    )


async def test_what_arrives_after_the_end_of_its_push_is_not_kept(world: World) -> None:
    """An upload that began in time and is whole too late leaves no file, and is refused."""
    await world.pushed("hello")
    before = world.everything()
    claim = await world.call("POST", "/v1/apps/hello/pushes", json={})
    path = f"/v1/apps/hello/pushes/{claim['push']}"
    over = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"beginning"
        await over.wait()
        yield b"end"

    upload = asyncio.create_task(world.http.put(f"{world.base}{path}/package", data=slow()))
    await world.until(lambda: any(push.requests for push in world.controller.pushes.all()), "no upload")
    await world.call("DELETE", path)
    over.set()
    async with await upload as response:
        assert response.status == 404
        assert "is over" in await response.text()
    assert world.everything() == before


async def test_without_a_checksum_all_are_started(world: World) -> None:
    """The host has dropped its start of index 0 (it evacuates): every index is the controller's to start."""
    world.stages_well(starts=False)
    events = await world.events(await world.claimed("hello", instances=2))
    assert events[-1]["event"] == "staged"
    await world.until(lambda: len(world.agent.instances) == 2, "not started")
    assert sorted(body["index"] for body in world.starts()) == [0, 1]


async def test_a_droplet_goes_up_and_down_as_with_the_cloud_controller(world: World) -> None:
    """Multipart upload with async=true, a job to poll, the same bytes back; never without the password."""
    answers: list[tuple[int, Any]] = []
    world.stages_well()
    well = world.agent.stage

    async def stage(body: dict[str, Any]) -> list[dict[str, Any]]:
        answers.append(await world.upload(body["upload_uri"] + "?async=true", DROPLET))
        return await well(body)

    world.agent.stage = stage
    await world.events(await world.claimed("hello"))
    ((status, job),) = answers
    assert (status, job["entity"]["status"]) == (201, "queued")
    version = world.controller.app("hello").version
    async with aiohttp.ClientSession() as plain:
        async with plain.get(job["metadata"]["url"]) as poll:
            assert (await poll.json())["entity"]["status"] == "finished"
        async with plain.get(f"{world.base}/staging/droplets/{version}/download") as refused:
            assert refused.status == 401
        wrong = base64.b64encode(b"garrison:wrong").decode()
        async with plain.get(f"{world.base}/v1/apps", headers={"Authorization": f"Basic {wrong}"}) as refused:
            assert refused.status == 401
    async with world.http.get(f"{world.base}/staging/droplets/{version}/download") as back:
        assert await back.read() == DROPLET
    async with world.http.get(f"{world.base}/staging/droplets/..%2f..%2fapps.json/download") as refused:
        assert refused.status == 404
    assert (await world.upload(f"{world.base}/staging/droplets/{version}/upload", b"late"))[0] == 404
    assert world.controller.pushes.droplet(version).read_bytes() == DROPLET
    assert world.controller.pushes.cache(world.controller.app("hello").guid).read_bytes() == b"cache"


async def test_the_gateway_greets_and_routes(world: World) -> None:
    """A greet is answered, and a registered route answers until it is unregistered."""
    async with world.agent.bus.request_many("router.greet", b"{}") as answers:
        hello = msgspec.json.decode(await asyncio.wait_for(answers.get(), 5))
    assert hello["minimumRegisterIntervalInSeconds"] == 5

    async def page(_request: web.BaseRequest) -> web.Response:
        return web.Response(text="here")

    server = await asyncio.get_running_loop().create_server(web.Server(page), "127.0.0.1", 0)
    words = {"host": "127.0.0.1", "port": server.sockets[0].getsockname()[1], "uris": ["hello.localhost"]}
    address = f"http://127.0.0.1:{world.gateway.port}/"
    await world.agent.say(
        "router.register", {"dea": "host1", "app": "a", "tags": {"component": "dea-0"}, **words}
    )
    await world.until(lambda: bool(world.gateway.routes.uris()), "not registered")
    async with world.http.get(address, headers={"Host": "hello.localhost"}) as answer:
        assert await answer.text() == "here"
    await world.agent.say("router.unregister", words)
    await world.until(lambda: not world.gateway.routes.uris(), "not unregistered")
    async with world.http.get(address, headers={"Host": "hello.localhost"}) as answer:
        assert answer.status == 404
    server.close()


async def test_apps_survive_a_restart_of_the_controller(world: World, tmp_path: Path) -> None:
    """The file has every app as it was wanted."""
    await world.pushed("hello", instances=2, memory_mb=64, set_env={"A": "b"})
    again = Controller(state_dir=tmp_path, servers=(), base_uri=lambda: "", log=LOG)
    app = again.app("hello")
    assert (app.instances, app.memory_mb, app.env, app.droplet_sha1, app.started) == (
        2,
        64,
        {"A": "b"},
        DROPLET_SHA1,
        True,
    )


async def test_what_an_interrupted_push_left_is_removed_at_the_next_start(
    world: World, tmp_path: Path
) -> None:
    """And files that were named by their app's guid are taken over under their version."""
    await world.pushed("hello")
    version, guid = world.controller.app("hello").version, world.controller.app("hello").guid
    for kind in ("packages/x.zip", "droplets/x.tgz", "droplets/.x.tgz.new", "caches/x.tgz"):
        (tmp_path / kind).write_bytes(b"left")
    (tmp_path / "droplets" / f"{version}.tgz").rename(tmp_path / "droplets" / f"{guid}.tgz")
    Controller(state_dir=tmp_path, servers=(), base_uri=lambda: "", log=LOG)
    names = sorted(path.name for path in files_of(tmp_path))
    assert names == sorted([f"{version}.zip", f"{version}.tgz", f"{guid}.tgz"])
    assert (tmp_path / "droplets" / f"{version}.tgz").read_bytes() == DROPLET
