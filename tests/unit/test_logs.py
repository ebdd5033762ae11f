"""The log shows no secret and stays one line an event."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.config import LoggingSettings
from agent.logs import configure, mask

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://user:pass@host/path", "http://***@host/path"),
        ("NATS://user:pass@host:4222", "NATS://***@host:4222"),
        ("http://token@host/", "http://***@host/"),
        ("http://user:p@ss@host/", "http://***@host/"),
        ("http://user:p/w@host/", "http://***@host/"),
        ("tried nats://a:b@h1:1 and nats://c:d@h2:2", "tried nats://***@h1:1 and nats://***@h2:2"),
        ("http://host/path", "http://host/path"),
        ("mail a@b", "mail a@b"),
        ({"password": "x", "api_token": "y", "mem": 7}, {"password": "***", "api_token": "***", "mem": 7}),
        ([{"uri": "http://u:p@h/"}], [{"uri": "http://***@h/"}]),
        (None, None),
    ],
)
def test_secrets_are_masked_by_key_and_in_addresses(value: Any, shown: Any) -> None:
    """A password may hold an @ or a slash that nobody has encoded."""
    assert mask(value) == shown


def test_a_traceback_shows_no_variables_and_no_credentials(tmp_path: Path) -> None:
    """A start message is a variable of many frames."""
    file = tmp_path / "log"
    log = configure(LoggingSettings(file=file, format="json"))
    message = "hunter2-in-a-variable"
    try:
        raise ValueError(f"{len(message)} http://u:hunter2@h/")
    except ValueError:
        log.exception("broke")

    line = json.loads(file.read_text())
    assert "http://***@h/" in line["exception"]
    assert "hunter2" not in file.read_text()


def test_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name neither draws nor makes a line; a traceback has no variables there either."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(screen, write_through=True))
    log = configure(LoggingSettings(format="console"))
    secret = "hunter2-in-a-variable"
    try:
        raise ValueError(f"{len(secret)} http://u:hunter2@h/")
    except ValueError:
        log.exception("broke", app="a\nforged\x1b[2J")

    told = screen.getvalue().decode()
    assert "hunter2" not in told
    assert "a\\nforged\\x1b[2J" in told
    assert "\nforged" not in told
