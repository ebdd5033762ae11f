"""Invalid staging requests: each one with a reply inbox is answered at once."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from driver import Host
from driver_peer import Word
from staging_kit import Desk, buildpack

pytestmark = pytest.mark.bus

BROKEN = (b"{", b" {}", b'{"task_id":' * 5000)
NO_REQUEST = (b"", b"null", b"[]", b'"text"', b"\xff\xfe{}", b"[" * 5000, b"1e400")
#: A field of a request, what is wrong with it, and a part of the answer.
ODD: dict[str, tuple[dict[str, Any], str]] = {
    "start-text": ({"start_message": "text"}, "start_message: Expected `object`"),
    "start-list": ({"start_message": [1]}, "start_message: Expected `object`"),
    "start-no-limits": ({"start_message": {"limits": None}}, "start_message: "),
    "start-version": ({"start_message": {"version": 7}}, "start_message: "),
    "start-id": ({"start_message": {"instance_id": "../x"}}, "start_message: "),
    "no-address": ({"download_uri": None}, "$.download_uri"),
    "properties": ({"properties": []}, "$.properties"),
    "services": ({"properties": {"services": [{}]}}, "$.properties.services"),
    "limit": ({"memory_limit": "64M"}, "$.memory_limit"),
    "rules": ({"egress_network_rules": "all"}, "$.egress_network_rules"),
    "buildpacks": ({"admin_buildpacks": [{"key": 1, "url": 2}]}, "$.admin_buildpacks"),
    "app": ({"app_id": 7}, "$.app_id"),
}


@pytest.fixture
def desk(host: Host) -> Desk:
    return Desk(host)


async def test_every_request_with_an_inbox_is_answered(desk: Desk, host: Host) -> None:
    """A controller of 2015 waits a quarter of an hour: the one answer names the task and the field that is wrong."""
    stagings = {name: await desk.stage(**changes) for name, (changes, _) in ODD.items()}
    for name, staging in stagings.items():
        answer = await staging.reply(1)
        assert set(answer) == {"task_id", "error"}, name
        assert answer["task_id"] == staging.task_id, name
        assert answer["error"].startswith("Error staging: "), name
        assert ODD[name][1] in answer["error"], name

    numbered = await desk.stage(task_id=17)  # type: ignore[arg-type]
    assert (await numbered.reply(1))["task_id"] == "17"
    subject = f"staging.{host.dea}.start"
    await host.peer.burst([Word(subject, payload, f"silent.{at}") for at, payload in enumerate(NO_REQUEST)])
    await host.peer.burst([Word(subject, payload, f"inbox.{at}") for at, payload in enumerate(BROKEN)])
    await host.peer.until(lambda: all(host.peer.on(f"inbox.{at}") for at in range(len(BROKEN))), 20)
    for at in range(len(BROKEN)):
        (heard,) = host.peer.on(f"inbox.{at}")
        assert heard.body["task_id"] == ""
        assert heard.body["error"].startswith("Error staging: ")
    assert not any(host.peer.on(f"silent.{at}") for at in range(len(NO_REQUEST)))

    assert host.running.log("bus_command_failed") == []
    assert (await (await desk.stage(desk.pack("good", buildpack()))).reply(2))["droplet_sha1"] is not None


async def test_without_an_inbox_there_is_nobody_to_answer(desk: Desk, host: Host) -> None:
    """It is logged, as any message that makes no sense."""
    await host.peer.burst([Word(f"staging.{host.dea}.start", b"{}")])
    await host.running.wait_log("bus_message_refused", subject=f"staging.{host.dea}.start", within_s=20)


@pytest.mark.parametrize("nothing", [None, {}, "", []], ids=["null", "map", "text", "list"])
async def test_an_empty_start_message_is_none(desk: Desk, nothing: object) -> None:
    """The original asked whether there was something in it: the app is staged, and nothing is started."""
    pack = desk.pack("good", buildpack())
    message = desk.host.staging_message(desk.app(), admin_buildpacks=[pack]) | {"start_message": nothing}
    await desk.host.peer.say(f"staging.{desk.host.dea}.start", message | {"task_id": "empty"}, "inbox.empty")
    await desk.host.peer.until(lambda: len(desk.host.peer.on("inbox.empty")) == 2, 60)
    assert desk.host.peer.on("inbox.empty")[1].body["droplet_sha1"] is not None


async def test_an_agent_on_its_way_out_answers(desk: Desk, host: Host) -> None:
    """It takes no staging any more, and says so while its apps have their grace."""
    app = host.make_app("stays")
    await host.run(app, start_command="trap '' TERM; exec ./listener")
    host.running.signal(signal.SIGTERM)
    await host.running.wait_log("agent_ending")
    staging = await desk.stage()
    answer = await staging.reply(1)
    assert answer == {"task_id": staging.task_id, "error": "Error staging: the agent is leaving"}
    assert await host.running.wait_exited() == 0
