"""The log shows no secret and stays one line an event."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.config import LoggingSettings
from agent.logs import LogFile, configure, mask

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


@pytest.mark.parametrize(("before", "after"), [(None, 0o600), (0o644, 0o640), (0o666, 0o660), (0o600, 0o600)])
def test_the_log_is_its_owners_and_at_most_its_groups(tmp_path: Path, before: int | None, after: int) -> None:
    """One that an operator has made for a group stays the group's; a former agent's 0644 is closed to others."""
    file = tmp_path / "log"
    if before is not None:
        file.touch()
        file.chmod(before)
    old = os.umask(0)
    try:
        configure(LoggingSettings(file=file, format="json")).info("begun")
    finally:
        os.umask(old)
    assert file.stat().st_mode & 0o777 == after


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_rotated_log_goes_on_under_its_name(tmp_path: Path, format: Any) -> None:
    """Loggers that were bound before the rotation too."""
    path = tmp_path / "log"
    file = LogFile(path)
    log = configure(LoggingSettings(file=path, format=format), file).bind(app="shop")
    log.info("before")
    path.rename(tmp_path / "log.1")

    file.reopen()
    log.info("after")

    assert "before" in (tmp_path / "log.1").read_text()
    assert "after" not in (tmp_path / "log.1").read_text()
    assert "after" in path.read_text()


def test_a_log_that_cannot_be_opened_anew_goes_on_in_the_old_file(tmp_path: Path) -> None:
    """A rotation that went wrong does not make the agent mute."""
    path = tmp_path / "log"
    file = LogFile(path)
    log = configure(LoggingSettings(file=path, format="json"), file)
    path.rename(tmp_path / "log.1")
    path.mkdir()

    with pytest.raises(IsADirectoryError):
        file.reopen()

    log.info("after")
    assert "after" in (tmp_path / "log.1").read_text()
