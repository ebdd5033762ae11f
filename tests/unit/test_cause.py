"""What a developer is told of a failure: the cause, without secrets and without the host's paths."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import agent.cause
from agent.cause import HIDDEN, HIDDEN_ADDRESS, LIMIT_BYTES, host_paths, public, public_address
from agent.config import Settings
from agent.inside.environment import too_long

pytestmark = pytest.mark.unit

PATHS = ("/var/lib/garrison", "/opt/stacks/jammy")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("HTTP status: 404", "HTTP status: 404"),
        ("from https://cc:pa55@cc.example/v2/droplet: 404", "from https://cc.example/v2/droplet: 404"),
        ("https://u:p@ss/w@cc.example/a", "https://cc.example/a"),
        ("https://u:p@ss/w?rd#x@cc.example/a", f"https://{HIDDEN_ADDRESS}"),
        ("https://blob/d?user=me@x.org&Signature=s3cret: 403", f"https://{HIDDEN_ADDRESS}: 403"),
        ("https://blob/d?token=abc@s3cret, gone", f"https://{HIDDEN_ADDRESS}, gone"),
        ("http://blob/d?Signature=abc&Expires=1 gone", "http://blob/d gone"),
        ("http://blob/d#token", "http://blob/d"),
        ("two: nats://a:b@h:4222, 'mysql://u:p@db/x?s=1'", "two: nats://h:4222, 'mysql://db/x'"),
        ("from http://u:p@h/x?sig=1: 404 (http://h/y#z), done", "from http://h/x: 404 (http://h/y), done"),
        ("HTTPS://U:P@H/x", "HTTPS://H/x"),
        ("[Errno 28] No space left on device: '/var/lib/garrison/staging/1f/app.zip'",
         f"[Errno 28] No space left on device: '{HIDDEN}'"),
        ("layer /opt/stacks/jammy: Permission denied", f"layer {HIDDEN}: Permission denied"),
        ("/proc/self/fd/17/upper and /proc/4711/root", f"{HIDDEN} and {HIDDEN}"),
        ("/sys/fs/cgroup/memory/garrison/x: EBUSY", f"{HIDDEN}: EBUSY"),
        ("tar: /home/vcap/app/x: Cannot open", "tar: /home/vcap/app/x: Cannot open"),
        ("/var/lib/garrison2/x /srv/var/lib/garrison/x", "/var/lib/garrison2/x /srv/var/lib/garrison/x"),
    ],
)  # fmt: skip
def test_secrets_and_the_hosts_paths_stay_here(text: str, told: str) -> None:
    """User part and query of any URL, whatever a password holds; paths inside the container are the developer's own."""
    assert public(text, PATHS) == told


def test_an_address_by_itself() -> None:
    """Blanks and quotes in a password do not end it; what is no address is not shown."""
    assert public_address("http://u:p a'ss\"wd@cc.example/a?sig=1") == "http://cc.example/a"
    assert public_address("u:s3cret@cc.example") == HIDDEN_ADDRESS


def test_where_it_is_installed_is_hidden_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment is the host's; /usr is as well the container's own, of which a developer reads."""
    text = "/usr/bin/env: no bash"
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(sys, "prefix", "/usr")
    paths = host_paths(Settings(Path("/var/lib/garrison")))
    assert public(text, paths) == text
    assert public(f"{Path(agent.cause.__file__).parent}/x: gone", paths) == f"{HIDDEN}: gone"

    monkeypatch.setattr(sys, "prefix", "/opt/venv")
    assert public("/opt/venv/bin/python: gone", host_paths(Settings(Path("/b")))) == f"{HIDDEN}: gone"


def test_a_cause_has_an_end() -> None:
    """A text of megabytes is cut with a mark."""
    told = public("x" * 3_000_000, PATHS)
    assert len(told) == LIMIT_BYTES
    assert told.endswith("[cut]")


def test_a_variable_that_is_too_long_is_named() -> None:
    """With its size, and without its value; its end counts."""
    fits, over = "FITS=" + "x" * 94, "OVER=" + "s3cret" * 16
    assert too_long((fits,), 100) is None
    told = too_long((fits, over), 100)
    assert told == "environment: OVER has 101 bytes, expected fewer than 100"


def test_a_cause_is_at_most_four_kib() -> None:
    """Pinned as a number: it goes into messages and into the app's log."""
    assert LIMIT_BYTES == 4096
