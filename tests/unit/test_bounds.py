"""What others wrote fits into a message: refused where it is decoded, or cut with a mark, or sent in parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET

from agent.bus import messages as m
from agent.bus.bounds import ERROR_BYTES, ID_BYTES, LABEL_BYTES, shortened
from agent.bus.heartbeats import HeartbeatParts

pytestmark = pytest.mark.unit

LONG = "\u00e9" * (ID_BYTES // 2) + "x"  # 257 bytes in 129 characters
FITS = "\u00e9" * (ID_BYTES // 2)


def start(**changes: Any) -> dict[str, Any]:
    limits = {"mem": 1, "disk": 1, "fds": 1}
    body = {"droplet": "a", "version": "v", "name": "n", "index": 0, "limits": limits, "services": []}
    return {**body, "cc_partition": "default", **changes}


def staging(**changes: Any) -> dict[str, Any]:
    body = {"app_id": "a", "task_id": "t", "properties": {}, "download_uri": "d", "upload_uri": "u"}
    return {**body, **changes}


@pytest.mark.parametrize(
    ("kind", "body", "where"),
    [
        (m.StartMessage, start(droplet=LONG), "droplet"),
        (m.StartMessage, start(version=LONG), "version"),
        (m.StartMessage, start(cc_partition=LONG), "cc_partition"),
        (m.StartMessage, start(uris=["x" * 1025]), "uris"),
        (m.StartMessage, start(uris=["x" * 1024] * 257), "uris"),
        (m.UpdateMessage, {"droplet": "a", "version": LONG}, "version"),
        (m.UpdateMessage, {"droplet": "a", "uris": ["x" * 1025]}, "uris"),
        (m.StagingStart, staging(app_id=LONG), "app_id"),
        (m.StagingStart, staging(task_id=LONG), "task_id"),
        (m.StagingStart, staging(admin_buildpacks=[{"key": LONG, "url": "u"}]), "key"),
    ],
)
def test_what_would_make_each_heartbeat_or_register_too_large_is_refused(
    kind: type[Any], body: dict[str, Any], where: str
) -> None:
    """By its bytes, not its characters; the error names the field."""
    with pytest.raises(m.MessageError, match=f"{where}: expected at most"):
        m.decode(kind, json.dumps(body).encode())


def test_what_just_fits_is_taken() -> None:
    """256 bytes of an id, a route of 1,024."""
    body = start(droplet=FITS, version=FITS, cc_partition=FITS, uris=["x" * 1024])
    found = m.decode(m.StartMessage, json.dumps(body).encode())
    assert (found.app, found.version, found.cc_partition) == (FITS, FITS, FITS)
    assert m.decode(m.StagingStart, json.dumps(staging(task_id=FITS)).encode()).task_id == FITS


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("short", 10, "short"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "0123 [cut]"),
        ("\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9", 11, "\u00e9\u00e9 [cut]"),
        ("\ud800" * 20, 10, "???? [cut]"),
    ],
)
def test_a_text_is_cut_with_a_mark_and_in_whole_characters(text: str, limit: int, expected: str) -> None:
    """The mark counts, too."""
    assert shortened(text, limit) == expected


HUGE = "x" * (2 << 20)


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        (m.StagingReply1("t", None, HUGE), ERROR_BYTES),
        (m.StagingRefused("t", HUGE), ERROR_BYTES),
        (m.StagingReply2("t", "a", HUGE, HUGE, error=HUGE, error_info=m.ErrorInfo(HUGE, HUGE)), ERROR_BYTES * 3),
        (m.DropletExited("p", "a", "v", "i", 0, "CRASHED", 1, HUGE, 7), LABEL_BYTES),
        (m.Stats(HUGE, (), "h", 1, 1, 1, 1, 1, m.Usage("t", 0.0, 1, 1)), LABEL_BYTES),
    ],
)  # fmt: skip
def test_texts_from_outside_are_bounded_where_they_enter_a_message(message: Any, limit: int) -> None:
    """Two megabytes of a buildpack's output made the second staging reply vanish."""
    assert len(m.encode(message)) < limit + 500
    assert b"[cut]" in m.encode(message)


def test_what_is_short_or_absent_stays_as_it_is() -> None:
    """Absent keys are no empty ones."""
    reply = m.StagingReply2("t", "a", detected_buildpack="Python")
    assert (reply.detected_buildpack, reply.error, reply.error_info) == ("Python", UNSET, UNSET)
    assert b"error" not in m.encode(reply)


# Heartbeats.

LIMIT = 2_000


def beat(*instances: str) -> m.Heartbeat:
    entries = (m.HeartbeatEntry("default", "a" * 200, "v", one, 0, "RUNNING", 1.0) for one in instances)
    return m.Heartbeat(tuple(entries), "me")


def placed(parts: tuple[m.Heartbeat, ...]) -> dict[str, list[str]]:
    for part in parts:
        assert len(m.encode(part)) <= LIMIT
    return {part.dea: [one.instance for one in part.droplets] for part in parts}


def test_a_heartbeat_that_fits_goes_as_it_is() -> None:
    """An empty one too."""
    parts = HeartbeatParts()
    for whole in (beat(), beat("0", "1")):
        assert parts.split(whole, LIMIT) == (whole,)


def test_an_instance_stays_in_its_part_and_an_emptied_part_is_sent_empty() -> None:
    """HM9000 deletes what the newest heartbeat of one id lacks."""
    parts = HeartbeatParts()
    assert placed(parts.split(beat(*"0123456"), LIMIT)) == {"me": list("0123"), "me-2": list("456")}
    assert placed(parts.split(beat(*"13456"), LIMIT)) == {"me": list("13"), "me-2": list("456")}
    assert placed(parts.split(beat(*"13456", "new"), LIMIT)) == {"me": ["1", "3", "new"], "me-2": list("456")}
    assert placed(parts.split(beat("1"), LIMIT)) == {"me": ["1"], "me-2": []}
    assert placed(parts.split(beat(), LIMIT)) == {"me": [], "me-2": []}
    assert placed(parts.split(beat("4"), LIMIT)) == {"me": ["4"], "me-2": []}


def test_what_has_outgrown_its_part_moves() -> None:
    """A server may take less than the one before."""
    parts = HeartbeatParts()
    assert list(placed(parts.split(beat(*"0123"), LIMIT))) == ["me"]
    small = parts.split(beat(*"0123"), 1_200)
    assert [len(part.droplets) for part in small] == [2, 2]
    assert [part.dea for part in small] == ["me", "me-2"]
    parts = HeartbeatParts()
    parts.split(beat(*"0123456"), LIMIT)
    moved = {
        part.dea: "".join(one.instance for one in part.droplets)
        for part in parts.split(beat(*"0123456"), 1_200)
    }
    assert moved == {"me": "01", "me-2": "45", "me-3": "23", "me-4": "6"}
