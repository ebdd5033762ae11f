"""The main job end to end: real stagings, real containers, a real bus, asked over HTTP from outside."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Platform

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def until(true: Callable[[], bool], what: str, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_hello_flask_from_push_to_stop(platform: Platform) -> None:
    """Two instances answer, a shell works inside, one is left after a scale, none after a stop."""
    pushed = platform.ok("push", ROOT / "examples" / "hello-flask", "--name", "hello", "-i", "2", "-m", "64M")
    assert pushed.stdout.strip() == f"http://hello.localhost:{platform.port}"
    assert "-----> Installing 8 wheels from vendor/" in pushed.stderr, "the buildpack's output was live"
    indexes = set()
    for _ in range(20):
        status, body = platform.get("hello", "/env.json")
        assert status == 200
        facts = json.loads(body)
        indexes.add(facts["index"])
        assert facts["memory_limit"] == "64m"
        assert facts["application"]["instance_index"] == facts["index"]
    assert indexes == {0, 1}

    row = platform.apps()["hello"]
    assert (row["state"], row["running"], row["memory_limit_bytes"]) == ("running", 2, 64 << 20)
    assert 0 < row["memory_bytes"] < 2 * (64 << 20)

    inside = platform.run("shell", "hello/1", "--", "sh", "-c", "id -un; cat; exit 7")
    assert (inside.returncode, inside.stdout) == (7, "vcap\n"), inside.stderr
    assert "GET /env.json" in platform.ok("logs", "hello").stdout

    platform.ok("scale", "hello", "1")
    until(lambda: platform.apps()["hello"]["running"] == 1, "one instance")
    platform.ok("stop", "hello")
    until(lambda: platform.get("hello")[0] == 404, "the route goes")
    platform.ok("start", "hello")
    assert platform.get("hello")[0] == 200
    platform.ok("delete", "hello", "--yes")
    assert "hello" not in platform.apps()


def test_a_directory_that_nobody_recognises(platform: Platform, tmp_path: Path) -> None:
    """Status 1, the buildpacks that were tried and what each looked for, nothing on stdout."""
    (tmp_path / "readme.md").write_text("x")
    done = platform.run("push", tmp_path, "--name", "broken")
    assert done.returncode == 1
    assert "no buildpack recognised the app" in done.stderr
    assert "staticfile (no Staticfile or index.html)" in done.stderr
    assert done.stdout == ""


def test_a_static_site(platform: Platform, tmp_path: Path) -> None:
    """The static buildpack's server answers through the gateway, and a second push replaces the page."""
    (tmp_path / "index.html").write_text("one")
    platform.ok("push", tmp_path, "--name", "site", "-m", "64M")
    assert platform.get("site") == (200, b"one")
    (tmp_path / "index.html").write_text("two")
    platform.ok("push", tmp_path, "--name", "site")
    until(lambda: platform.get("site") == (200, b"two"), "the new page")
    platform.ok("delete", "site", "--yes")


def test_an_app_that_exits_at_once(platform: Platform, tmp_path: Path) -> None:
    """Push fails with the exit status and where to look; the log has its last words."""
    (tmp_path / "Procfile").write_text("web: echo last words; exit 9\n")
    done = platform.run("push", tmp_path, "--name", "dies", "-m", "64M")
    assert done.returncode == 1
    assert "garrison logs dies" in done.stderr
    assert "exit status 9" in done.stderr
    until(lambda: platform.apps()["dies"]["state"] == "crashing", "it is shown as crashing")
    platform.ok("delete", "dies", "--yes")


def test_a_missing_wheel_shows_the_buildpacks_words(platform: Platform, tmp_path: Path) -> None:
    """pip's own complaint is on the terminal, and the status is 1."""
    shutil.copytree(ROOT / "examples" / "hello-flask", tmp_path / "app")
    (tmp_path / "app" / "requirements.txt").write_text("Flask==3.1.3\nabsent-package==1\n")
    done = platform.run("push", tmp_path / "app", "--name", "nowheel")
    assert done.returncode == 1
    assert "absent-package==1" in done.stderr
