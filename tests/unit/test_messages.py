"""Every fixture with a NATS channel: what comes in decodes, what we say has the fields that peers read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.announce import Voice
from agent.bus import messages as m
from agent.config import Settings, StackSettings
from agent.instances.instance import Event, Exit, Instance, State
from agent.instances.registry import Registry
from agent.resources import Capacity
from container import PortMapping, Protocol

pytestmark = pytest.mark.unit
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
AGENT = "b1946ac9-2f3a-4c59-8d8e-3e7f2c0a9d41"

INBOUND: list[tuple[str, type[msgspec.Struct]]] = [
    ("dea.start", m.StartMessage),
    ("dea.start.minimal", m.StartMessage),
    ("dea.start.custom_command", m.StartMessage),
    ("dea.stop.app", m.StopMessage),
    ("dea.stop.indices", m.StopMessage),
    ("dea.stop.instances", m.StopMessage),
    ("dea.update", m.UpdateMessage),
    ("dea.find.droplet.request", m.FindMessage),
    ("dea.find.droplet.request.stats", m.FindMessage),
    ("dea.find.droplet.request.path", m.FindMessage),
    ("router.start", m.RouterStart),
    ("staging.start", m.StagingStart),
    ("staging.start.buildpack_key", m.StagingStart),
    ("staging.start.custom_buildpack", m.StagingStart),
    ("staging.stop", m.StagingStop),
]


def raw(name: str) -> bytes:
    return (FIXTURES / f"{name}.json").read_bytes()


def fixture(name: str) -> Any:
    return json.loads(raw(name))


@pytest.mark.parametrize(("name", "kind"), INBOUND)
def test_what_peers_send_decodes_and_keeps_its_values(name: str, kind: type[msgspec.Struct]) -> None:
    """Each known field has the fixture's value; unknown ones are passed over."""
    found = msgspec.to_builtins(m.decode(kind, raw(name)))
    sent = fixture(name)
    for key in set(found) & set(sent):
        if not isinstance(sent[key], dict | list):
            assert found[key] == sent[key], key
    if kind is m.StartMessage:
        assert found["limits"] == sent["limits"]
        assert list(found["uris"] or []) == (sent.get("uris") or [])


def test_a_start_with_uris_that_are_no_list_is_refused() -> None:
    """dea.start.invalid_uris must be dropped silently: the decoder says why, for the log."""
    with pytest.raises(m.MessageError, match=r"uris"):
        m.decode(m.StartMessage, raw("dea.start.invalid_uris"))


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"null", b'{"droplet": ', b"\xff\xfe", b"[1,2,3]", b'{"droplet":{"nested":1}}', b"9" * 5000],
)
@pytest.mark.parametrize(
    "kind", [m.StartMessage, m.StopMessage, m.UpdateMessage, m.FindMessage, m.StagingStart]
)
def test_broken_words_are_refused(kind: type[msgspec.Struct], payload: bytes) -> None:
    """Whatever it is, the answer is one kind of error."""
    with pytest.raises(m.MessageError):
        m.decode(kind, payload)


def test_an_unknown_state_refuses_the_whole_message() -> None:
    """dea-bus.md 1.5: an unknown name raises and the message is dropped."""
    with pytest.raises(m.MessageError, match="NONSENSE"):
        m.decode(m.StopMessage, b'{"droplet":"a","states":["NONSENSE"]}')


def test_a_stop_knows_whether_the_app_was_all_that_was_said() -> None:
    """`droplet` alone also ends stagings; with any other key it does not."""
    assert m.decode(m.StopMessage, b'{"droplet": 7}').only_app
    assert not m.decode(m.StopMessage, b'{"droplet": 7, "indices": []}').only_app
    assert m.decode(m.StopMessage, b'{"droplet": 7}').app == "7"


@pytest.mark.parametrize(
    ("said", "interval"),
    [(b'{"minimumRegisterIntervalInSeconds":5}', 5.0), (b"{}", None), (b'{"minimumRegisterIntervalInSeconds":"5"}', None),
     (b'{"minimumRegisterIntervalInSeconds":-1}', None), (b'{"minimumRegisterIntervalInSeconds":true}', None)],
)  # fmt: skip
def test_a_routers_interval_counts_only_as_a_positive_number(said: bytes, interval: float | None) -> None:
    """peers-on-the-bus.md 4: anything else is ignored."""
    assert m.decode(m.RouterStart, said).interval_s == interval


# ---- what we say ---------------------------------------------------------------------------------------------------


def instance() -> Instance:
    message = m.decode(m.StartMessage, raw("dea.start"))
    exited = fixture("droplet.exited.crashed")
    one = Instance(
        id=exited["instance"],
        private_id=fixture("router.register")["private_instance_id"],
        message=message,
        version=message.version,
        uris=tuple(message.uris or ()),
        state=State.RUNNING,
        healthy=True,
        port=PortMapping(Protocol.TCP, 61007, 61007),
    )
    one.exit = Exit(exited["exit_status"], exited["exit_description"])
    one.crashed_at_s = exited["crash_timestamp"]
    return one


def voice(registry: Registry) -> Voice:
    settings = Settings(base_dir=Path("/x"), stacks=(StackSettings("cflinuxfs2", Path("/s")),))
    return Voice(settings, AGENT, "10.0.16.21", registry)


def said(message: Any) -> Any:
    return json.loads(m.encode(message))


def test_router_messages_are_as_the_router_reads_them() -> None:
    """Same keys, same order, same types as the original's."""
    registry, one = Registry(), instance()
    registry.add(one)
    assert said(voice(registry).register(one, one.uris)) == fixture("router.register")
    unregister = said(voice(registry).unregister(one, ["shop.example.com"]))
    assert unregister == fixture("router.unregister")
    assert list(unregister) == list(fixture("router.unregister"))


def test_an_instance_that_never_had_a_port_is_not_unregistered() -> None:
    """peers-on-the-bus.md 4: the original said port null, which the router drops."""
    one = instance()
    one.port = None
    assert voice(Registry()).unregister(one, one.uris) is None


def test_an_exit_is_as_the_cloud_controller_reads_it() -> None:
    """Every key and type of the fixture; crash_timestamp is an integer."""
    exited = said(voice(Registry()).exited(instance()))
    assert exited == fixture("droplet.exited.crashed")
    assert list(exited) == list(fixture("droplet.exited.crashed"))


@pytest.mark.parametrize("name", ["droplet.exited.healthcheck", "droplet.exited.insufficient_resources"])
def test_other_exits_have_the_same_fields(name: str) -> None:
    """The description differs, the shape does not."""
    assert set(fixture(name)) == set(said(voice(Registry()).exited(instance())))


def test_a_heartbeat_has_the_original_entries_also_when_empty() -> None:
    """dea-bus.md 1.9: exactly these keys in this order; an empty list is said too."""
    registry = Registry()
    empty = said(voice(registry).heartbeat())
    assert empty == {"droplets": [], "dea": AGENT}
    assert set(empty) == set(fixture("dea.heartbeat.empty"))
    registry.add(instance())
    entry = said(voice(registry).heartbeat())["droplets"][0]
    assert list(entry) == list(fixture("dea.heartbeat")["droplets"][0])
    assert isinstance(entry["index"], int)
    assert isinstance(entry["state_timestamp"], float)


def test_adverts_have_what_a_pool_needs_and_no_url() -> None:
    """One advert without app_id_to_count poisons a whole pool; a url would mean HTTPS staging."""
    registry = Registry()
    registry.add(instance())
    dea, staging = voice(registry).adverts(Capacity(2560, 28672))
    assert set(said(dea)) == set(fixture("dea.advertise.nossl")) - {"url"}
    assert said(dea)["app_id_to_count"] == {instance().app: 1}
    assert set(said(staging)) == set(fixture("legacy.staging.advertise"))
    assert said(staging)["id"] == said(dea)["id"]


def test_a_shutdown_has_the_original_fields() -> None:
    """Version "0.0.1" is what it always was."""
    assert set(said(voice(Registry()).shutdown())) == set(fixture("dea.shutdown"))


@pytest.mark.parametrize(
    ("request_name", "answer_name"),
    [
        ("dea.find.droplet.request", "dea.find.droplet.response"),
        ("dea.find.droplet.request.stats", "dea.find.droplet.response.stats"),
    ],
)
def test_answers_to_a_question(request_name: str, answer_name: str) -> None:
    """Stats only when asked and RUNNING; field by field as the fixture."""
    registry, one = Registry(), instance()
    question = m.decode(m.FindMessage, raw(request_name))
    answer = said(voice(registry).found(one, question))
    wanted = fixture(answer_name)
    assert set(answer) == set(wanted)
    if "stats" in wanted:
        assert list(answer["stats"]) == list(wanted["stats"])
        assert list(answer["stats"]["usage"]) == list(wanted["stats"]["usage"])


def test_staging_replies() -> None:
    """The keys of dea-bus.md 3.4; error and error_info only on failure."""
    assert set(said(m.StagingReply1("t"))) == set(fixture("staging.start.reply1"))
    done = fixture("staging.start.reply2.success")
    reply = m.StagingReply2(
        done["task_id"],
        done["app_id"],
        done["detected_buildpack"],
        done["buildpack_key"],
        done["droplet_sha1"],
        done["detected_start_command"],
        done["procfile"],
    )
    assert said(reply) == done
    failed = fixture("staging.start.reply2.no_buildpack")
    info = m.ErrorInfo(failed["error_info"]["type"], failed["error_info"]["message"])
    assert (
        said(m.StagingReply2(failed["task_id"], failed["app_id"], error=failed["error"], error_info=info))
        == failed
    )
    stopped = fixture("staging.start.reply.stopped")
    assert said(m.StagingRefused(stopped["task_id"], stopped["error"])) == stopped
    timeout = fixture("staging.start.reply2.timeout")
    assert said(m.StagingReply2(timeout["task_id"], timeout["app_id"], error=timeout["error"])) == timeout


def test_routes_follow_the_state() -> None:
    """Only what runs, is healthy and has uris is registered."""
    registry, one = Registry(), instance()
    registry.add(one)
    assert [route.private_instance_id for route in voice(registry).routes()] == [one.private_id]
    one.move(Event.EXITED, 1.0)
    assert voice(registry).routes() == ()


@pytest.mark.parametrize(("heard", "interval_s"), [(5, 5.0), (0.1, 1.0), (300, 20.0), ("x", 20.0)])
def test_the_register_interval_is_the_smaller_within_bounds(heard: Any, interval_s: float) -> None:
    """Never above 20 s nor below 1 s (peers-on-the-bus.md 4)."""
    speaker = voice(Registry())
    speaker.heard_router(m.RouterStart(heard))
    assert speaker.register_interval_s == interval_s
