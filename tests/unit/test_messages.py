"""What peers say: every fixture decodes and keeps its values; what is no such message is refused with one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.bus import messages as m

pytestmark = pytest.mark.unit
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

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


def is_within(found: Any, sent: Any) -> bool:
    """All that was decoded is what was sent; keys that peers did not send have our defaults, theirs may be unknown to us."""
    if isinstance(found, dict):
        return all(is_within(found[key], sent[key]) for key in found if key in sent)
    if isinstance(found, list | tuple):
        return len(found) == len(sent) and all(map(is_within, found, sent))
    return bool(found == sent) and type(found) is type(sent)


@pytest.mark.parametrize(("name", "kind"), INBOUND)
def test_what_peers_send_decodes_and_keeps_its_values(name: str, kind: type[msgspec.Struct]) -> None:
    """Field by field, as deep as it goes; unknown keys are passed over."""
    sent = fixture(name)
    found = msgspec.to_builtins(m.decode(kind, raw(name)))
    assert set(found) & set(sent)
    assert is_within(found, sent)


def test_the_start_inside_a_staging_is_a_start() -> None:
    """Decoded when the droplet is there: with its checksum, and no address to fetch it from."""
    request = m.decode(m.StagingStart, raw("staging.start"))
    start = m.convert(m.StartMessage, request.start_message)
    assert (start.app, start.index, start.sha1) == (request.app_id, 0, None)
    assert m.with_sha1(start, "abc").sha1 == "abc"


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
    """An unknown name raises and the message is dropped (docs/protocol.md, "Filters")."""
    with pytest.raises(m.MessageError, match="NONSENSE"):
        m.decode(m.StopMessage, b'{"droplet":"a","states":["NONSENSE"]}')


def test_a_stop_knows_whether_the_app_was_all_that_was_said() -> None:
    """`droplet` alone also ends stagings; with any other key it does not."""
    assert m.decode(m.StopMessage, b'{"droplet": 7}').only_app
    assert not m.decode(m.StopMessage, b'{"droplet": 7, "indices": []}').only_app
    assert m.decode(m.StopMessage, b'{"droplet": 7}').app == "7"


@pytest.mark.parametrize(
    ("said", "interval"),
    [("5", 5.0), ("0.5", 0.5), ("9" * 400, 2147483647.0), ('"5"', None), ("-1", None), ("0", None), ("true", None), ("null", None)],
)  # fmt: skip
def test_a_routers_interval_counts_only_as_a_positive_number(said: str, interval: float | None) -> None:
    """Anything else is ignored (docs/protocol.md, "Routes")."""
    start = b'{"minimumRegisterIntervalInSeconds":%b}' % said.encode()
    assert m.decode(m.RouterStart, start).interval_s == interval
    assert m.decode(m.RouterStart, b"{}").interval_s is None


@pytest.mark.parametrize(
    ("uris", "kept"),
    [
        ('["A.Example.com","a.example.com"]', ("a.example.com",)),
        ('["b.example.com","a.example.com/","A.example.com?x=Y"]', ("b.example.com", "a.example.com")),
        ('["a.example.com/Path/","a.example.com/path"]', ("a.example.com/path",)),
        ("[]", ()),
        ("null", None),
    ],
)
def test_the_spellings_of_one_route_are_one_route(uris: str, kept: tuple[str, ...] | None) -> None:
    """Routers compare without case, query and trailing slash; the agent compares what it decodes."""
    update = m.decode(m.UpdateMessage, b'{"droplet":"a","uris":%b}' % uris.encode())
    start = m.decode(m.StartMessage, msgspec.json.encode({**fixture("dea.start"), "uris": json.loads(uris)}))
    assert (update.uris, start.uris) == (kept, kept)
