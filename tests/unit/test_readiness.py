"""When the state file of an old droplet says that its app runs."""

from __future__ import annotations

import pytest

from agent.instances.health import says_running

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "running"),
    [
        (b'{"state": "RUNNING"}', True),
        (b'{"state": "RUNNING", "more": [1]}\n', True),
        (b'{"state": "STARTING"}', False),
        (b'{"state": "running"}', False),
        (b'{"state": ["RUNNING"]}', False),
        (b'["RUNNING"]', False),
        (b'"RUNNING"', False),
        (b'{"state": "RUNN', False),
        (b"", False),
        (b"\xff\xfe", False),
        (b"[" * 60_000, False),
    ],
)
def test_only_a_whole_object_that_says_so(text: bytes, running: bool) -> None:
    """Half a file is one that is being written; another state is not yet; anything else is none."""
    assert says_running(text) is running
