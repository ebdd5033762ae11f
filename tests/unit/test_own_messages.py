"""What the agent publishes, compared with the fixtures field by field, except where docs/protocol.md says otherwise.

Its section "Differences from the original" lists these.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_messages import FIXTURES, INBOUND, fixture, raw

from agent.announce import OwnMessages
from agent.bus import messages as m
from agent.config import PlacementSettings, Settings, StackSettings
from agent.instances.health import remembered
from agent.instances.instance import Exit, Instance, InstanceEvent, State
from agent.instances.registry import Registry
from agent.resources import Capacity
from container import PortMapping, Protocol

pytestmark = pytest.mark.unit
AGENT = "b1946ac9-2f3a-4c59-8d8e-3e7f2c0a9d41"
START = m.decode(m.StartMessage, raw("dea.start"))

OUTBOUND = {
    "dea.advertise", "dea.advertise.nossl", "dea.heartbeat", "dea.heartbeat.empty", "dea.shutdown",
    "dea.find.droplet.response", "dea.find.droplet.response.stats", "dea.find.droplet.response.path",
    "droplet.exited.crashed", "droplet.exited.healthcheck", "droplet.exited.insufficient_resources",
    "router.register", "router.unregister", "router.unregister.never_started",
    "staging.start.reply1", "staging.start.reply1.setup_failed", "staging.start.reply2.success",
    "staging.start.reply2.no_buildpack", "staging.start.reply2.timeout", "staging.start.reply2.upload_failed",
    "staging.start.reply.stopped", "staging.start.reply.insufficient_resources",
}  # fmt: skip
REFUSED = {"dea.start.invalid_uris"}
#: HTTP, a file, or somebody else's; tests/fixtures/INDEX.md says which.
NOT_ON_OUR_BUS = (
    "legacy.", "hm9000.", "http.", "instance_paths.", "instances.snapshot", "internal.", "upload.",
    "staging.completed.http_post", "router.register.directory_server",
)  # fmt: skip


def test_every_fixture_with_a_nats_channel_is_replayed() -> None:
    """A new one must find its place in one of the tables."""
    names = {path.stem for path in FIXTURES.glob("*.json")}
    ours = {name for name in names if not name.startswith(NOT_ON_OUR_BUS)}
    assert ours == {name for name, _ in INBOUND} | OUTBOUND | REFUSED


def published(message: Any) -> Any:
    return json.loads(m.encode(message))


def instance(told: dict[str, Any] | None = None) -> Instance:
    """The app of the fixtures, or the one that ``told`` (a heartbeat's entry, an exit, an answer) is about."""
    told = told or fixture("dea.find.droplet.response")
    message = msgspec.structs.replace(
        START, droplet=told["droplet"], index=told["index"], cc_partition=told.get("cc_partition", "default")
    )
    return Instance(
        id=told["instance"],
        private_id=fixture("router.register")["private_instance_id"],
        message=message,
        version=told["version"],
        uris=tuple(message.uris or ()),
        state=State(told.get("state", "RUNNING")),
        state_since_s=told.get("state_timestamp", 1.5),
        health=remembered(True),
        port=PortMapping(Protocol.TCP, 61007, 61007),
    )


def own_messages(
    *instances: Instance, stacks: tuple[str, ...] = ("cflinuxfs2",), zone: str = "default"
) -> OwnMessages:
    registry = Registry()
    for one in instances:
        registry.add(one)
    settings = Settings(
        base_dir=Path("/x"),
        stacks=tuple(StackSettings(name, Path("/s")) for name in stacks),
        placement_properties=PlacementSettings(zone),
    )
    return OwnMessages(settings, AGENT, "10.0.16.21", registry, time.time)


def of_apps(counts: dict[str, int]) -> list[Instance]:
    answer = fixture("dea.find.droplet.response")
    return [
        instance({**answer, "droplet": app, "index": index, "instance": f"{app}-{index}"})
        for app, count in counts.items()
        for index in range(count)
    ]


@pytest.mark.parametrize("kind", ["register", "unregister"])
def test_router_messages_are_as_the_router_reads_them(kind: str) -> None:
    """Same keys, same order, same values as the original's."""
    wanted = fixture(f"router.{kind}")
    message = published(getattr(own_messages(), kind)(instance(), wanted["uris"]))
    assert message == wanted
    assert list(message) == list(wanted)


def test_an_instance_that_never_had_a_port_is_not_unregistered() -> None:
    """The original published port null, which the router drops (docs/protocol.md, "Routes")."""
    one = instance()
    one.port = None
    assert fixture("router.unregister.never_started")["port"] is None
    assert own_messages().unregister(one, one.uris) is None


@pytest.mark.parametrize("name", sorted(name for name in OUTBOUND if name.startswith("droplet.exited")))
def test_an_exit_is_as_the_cloud_controller_reads_it(name: str) -> None:
    """Every key, type and value of the fixture, in its order; crash_timestamp is an integer."""
    wanted = fixture(name)
    one = instance(wanted)
    one.exit = Exit(wanted["exit_status"], wanted["exit_description"])
    one.crashed_at_s = wanted["crash_timestamp"]
    exited = published(own_messages().exited(one))
    assert exited == wanted
    assert list(exited) == list(wanted)
    assert type(exited["crash_timestamp"]) is int


@pytest.mark.parametrize("name", ["dea.heartbeat", "dea.heartbeat.empty"])
def test_a_heartbeat_has_the_original_entries_also_when_empty(name: str) -> None:
    """Exactly these keys in this order, in these four states (docs/protocol.md, "Heartbeat")."""
    wanted = fixture(name)
    heartbeat = published(own_messages(*map(instance, wanted["droplets"])).heartbeat())
    assert heartbeat == wanted
    assert [list(entry) for entry in heartbeat["droplets"]] == [list(entry) for entry in wanted["droplets"]]


@pytest.mark.parametrize("state", [State.BORN, State.STOPPING, State.STOPPED])
def test_a_heartbeat_leaves_out_what_the_health_manager_does_not_know(state: State) -> None:
    """One unknown state name would cost the whole heartbeat. What is born at this moment may be gone in the next."""
    one = instance()
    one.state, one.state_since_s = state, time.time()
    assert own_messages(one).heartbeat().droplets == ()


def test_what_is_born_and_waits_is_starting_in_the_heartbeat() -> None:
    """Longer than a second: the health manager knows no other name for it, and would start another in its place."""
    one = instance()
    one.state, one.state_since_s = State.BORN, time.time() - 5
    assert [entry.state for entry in own_messages(one).heartbeat().droplets] == ["STARTING"]


@pytest.mark.parametrize("name", ["dea.advertise", "dea.advertise.nossl"])
def test_adverts_have_what_a_pool_needs_and_no_url(name: str) -> None:
    """One without app_id_to_count poisons a whole pool; a url would mean HTTPS staging. Both have the same id."""
    wanted = fixture(name)
    del wanted["url"]  # docs/protocol.md, "Adverts": left out unless the HTTPS form is served
    own = own_messages(
        *of_apps(wanted["app_id_to_count"]),
        zone=wanted["placement_properties"]["zone"],
    )
    dea, staging = own.adverts(
        Capacity(wanted["available_memory"], wanted["available_disk"]), tuple(wanted["stacks"])
    )
    assert published(dea) == wanted
    assert published(staging) == {
        key: wanted[key] for key in ("id", "stacks", "available_memory", "available_disk")
    }
    assert set(published(staging)) == set(fixture("legacy.staging.advertise"))


def test_a_shutdown_is_the_original_one() -> None:
    """Version "0.0.1" is what it always was."""
    wanted = fixture("dea.shutdown")
    assert published(own_messages(*of_apps(wanted["app_id_to_count"])).shutdown()) == wanted


@pytest.mark.parametrize("what", ["", ".stats", ".path"])
def test_answers_to_a_question(what: str) -> None:
    """Stats only when asked and RUNNING; the directory server's address not before there is one."""
    wanted = fixture(f"dea.find.droplet.response{what}")
    wanted.pop("file_uri_v2", None)
    one = instance(wanted)
    if "stats" in wanted:
        usage = wanted["stats"]["usage"]
        one.message = msgspec.structs.replace(one.message, name=wanted["stats"]["name"])
        one.started_at_s = time.time() - wanted["stats"]["uptime"] - 0.5
        one.cpu_fraction, one.memory_bytes, one.disk_bytes = usage["cpu"], usage["mem"], usage["disk"]
    question = m.decode(m.FindMessage, raw(f"dea.find.droplet.request{what}"))

    answer = published(own_messages().found(one, question))

    if "stats" in wanted:
        told, form = answer["stats"]["usage"]["time"], "%Y-%m-%d %H:%M:%S %z"
        assert time.strftime(form.replace("%z", "+0000"), time.strptime(told, form)) == told
        usage["time"] = told
    assert answer == wanted
    assert list(answer) == list(wanted)


def test_what_does_not_run_has_no_stats() -> None:
    """As docs/protocol.md, "Find request", says."""
    one = instance()
    one.state = State.STARTING
    question = m.decode(m.FindMessage, raw("dea.find.droplet.request.stats"))
    assert "stats" not in published(own_messages().found(one, question))


@pytest.mark.parametrize("name", ["staging.start.reply1", "staging.start.reply1.setup_failed"])
def test_the_first_reply_to_a_staging(name: str) -> None:
    """The address of a streaming log is null until there is one."""
    wanted = fixture(name) | {"task_streaming_log_url": None}
    reply = published(m.StagingReply1(wanted["task_id"], error=wanted["error"]))
    assert reply == wanted
    assert list(reply) == list(wanted)


@pytest.mark.parametrize("name", sorted(name for name in OUTBOUND if name.startswith("staging.start.reply2")))
def test_the_second_reply_to_a_staging(name: str) -> None:
    """The keys of docs/protocol.md, "Staging replies"; error and error_info only on failure."""
    wanted = fixture(name)
    assert published(msgspec.convert(wanted, m.StagingReply2)) == wanted


@pytest.mark.parametrize(
    "name", ["staging.start.reply.stopped", "staging.start.reply.insufficient_resources"]
)
def test_the_only_reply_to_a_staging_that_is_not_done(name: str) -> None:
    """Two keys, no more."""
    wanted = fixture(name)
    assert published(m.StagingRefused(wanted["task_id"], wanted["error"])) == wanted


def test_routes_follow_the_state() -> None:
    """Only what runs, is healthy and has uris is registered."""
    one = instance()
    own = own_messages(one)
    assert [route.private_instance_id for route in own.routes()] == [one.private_id]
    one.move(InstanceEvent.EXITED, 1.0)
    assert own.routes() == ()


@pytest.mark.parametrize(("heard", "interval_s"), [(5, 5.0), (0.1, 1.0), (300, 20.0), ("x", 20.0)])
def test_the_register_interval_is_the_smaller_within_bounds(heard: Any, interval_s: float) -> None:
    """Never above 20 s nor below 1 s (docs/protocol.md, "Routes")."""
    own = own_messages()
    own.receive_router_start(m.RouterStart(heard))
    assert own.register_interval_s == interval_s
