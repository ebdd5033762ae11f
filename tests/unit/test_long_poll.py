"""The query of a long poll: which values wait, and which are refused."""

from __future__ import annotations

import pytest

from agent.http.long_poll import LongPoll, from_query, wait_s_from_query

pytestmark = pytest.mark.unit


def test_a_request_without_the_keys_is_answered_at_once() -> None:
    """Other keys are somebody else's."""
    assert from_query({}) is None
    assert from_query({"stats": "1"}) is None


def test_what_is_asked_for_arrives() -> None:
    """Numbers as they were written, up to the longest wait."""
    assert from_query({"after": "0", "wait_s": "0"}) == LongPoll(0, 0.0)
    assert from_query({"after": "17", "wait_s": "2.5"}) == LongPoll(17, 2.5)
    assert from_query({"after": "9" * 18, "wait_s": "30"}) == LongPoll(10**18 - 1, 30.0)
    poll = LongPoll(3, 0.1 + 0.2)
    assert from_query(poll.query()) == LongPoll(3, 0.3)


@pytest.mark.parametrize(
    "query",
    [
        {"after": "1"},
        {"wait_s": "1"},
        {"after": "", "wait_s": "1"},
        {"after": "-1", "wait_s": "1"},
        {"after": "1.0", "wait_s": "1"},
        {"after": "٣", "wait_s": "1"},
        {"after": "1" * 5000, "wait_s": "1"},
        {"after": "1", "wait_s": ""},
        {"after": "1", "wait_s": "-1"},
        {"after": "1", "wait_s": "nan"},
        {"after": "1", "wait_s": "inf"},
        {"after": "1", "wait_s": "1e1"},
        {"after": "1", "wait_s": "30.1"},
        {"after": "1", "wait_s": "1" * 5000},
    ],
)
def test_what_cannot_be_is_refused(query: dict[str, str]) -> None:
    """The message names the key."""
    with pytest.raises(ValueError, match=r"^(after|wait_s): expected "):
        from_query(query)


def test_a_wait_for_something_named_has_the_same_bounds() -> None:
    """Without the key there is no wait."""
    assert wait_s_from_query({"follow": "1"}) == 0
    assert wait_s_from_query({"wait_s": "30"}) == 30
    for text in ("30.1", "-1", "nan", ""):
        with pytest.raises(ValueError, match=r"^wait_s: expected "):
            wait_s_from_query({"wait_s": text})
