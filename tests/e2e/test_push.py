"""`garrison push` end to end: real stagings, real containers, a real bus, and HTTP requests from outside."""

from __future__ import annotations

import json
import os
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


def test_a_failed_push_leaves_the_app_as_it_was(platform: Platform, tmp_path: Path) -> None:
    """A mistyped buildpack, other settings and new code: the old code serves, and the next push has the old settings."""
    app = tmp_path / "app"
    app.mkdir()
    (app / "Procfile").write_text("web: env > env.txt; exec python3 -m http.server $PORT\n")
    (app / "page").write_text("one")
    platform.ok("push", app, "--name", "kept", "-m", "64M", "-e", "A.B=1", "-e", "C=2")
    assert platform.get("kept", "/page") == (200, b"one")

    (app / "page").write_text("two")
    done = platform.run("push", app, "--name", "kept", "-m", "128M", "-b", "phyton", "-e", "C=3", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == "kept was not staged"
    assert platform.get("kept", "/page") == (200, b"one")
    row = platform.apps()["kept"]
    assert (row["state"], row["running"], row["memory_limit_bytes"], row["pushing"]) == (
        "running",
        1,
        64 << 20,
        False,
    )

    platform.ok("push", app, "--name", "kept", "-e", "D=4", "--unset-env", "C")
    until(lambda: platform.apps()["kept"]["previous_running"] == 0, "the new version alone serves")
    assert platform.get("kept", "/page") == (200, b"two")
    lines = platform.get("kept", "/env.txt")[1].decode().splitlines()
    assert {"A.B=1", "D=4", "MEMORY_LIMIT=64m"} <= set(lines)
    assert not [line for line in lines if line.startswith("C=")]

    platform.ok("push", app, "--name", "kept", "-b", "procfile")
    (app / "Procfile").unlink()
    (app / "index.html").write_text("detected")
    platform.ok("push", app, "--name", "kept", "-b")
    until(lambda: platform.get("kept") == (200, b"detected"), "the detected buildpack's site")
    platform.ok("delete", "kept", "--yes")


def test_the_version_before_serves_while_the_new_one_crashes(platform: Platform, tmp_path: Path) -> None:
    """`apps` shows both, and the push says how the new one ended, in its own last lines."""
    (tmp_path / "index.html").write_text("old")
    platform.ok("push", tmp_path, "--name", "serves", "-m", "64M")
    (tmp_path / "index.html").unlink()
    (tmp_path / "Procfile").write_text("web: echo the last line; exit 9\n")
    done = platform.run("push", tmp_path, "--name", "serves", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["why"] == "app instance exited (exit status 9); the former version keeps serving"
    assert "the last line" in document["output"]
    assert "the last line" in done.stderr
    assert platform.get("serves") == (200, b"old")
    until(lambda: platform.apps()["serves"]["state"] == "crashing", "it is shown as crashing")
    row = platform.apps()["serves"]
    assert (row["running"], row["previous_running"]) == (0, 1)
    assert "0/1 (1 old)" in platform.ok("apps").stdout
    platform.ok("delete", "serves", "--yes")


LISTENS_INSIDE = "import socket, time; s = socket.create_server(('127.0.0.1', 5000)); time.sleep(600)"


def test_an_app_that_listens_elsewhere(platform: Platform, tmp_path: Path) -> None:
    """Within seconds the push says where it listens; the end of the health check ends the push, with the hint that fits."""
    (tmp_path / "Procfile").write_text(f'web: echo serving on 5000; exec python3 -c "{LISTENS_INSIDE}"\n')
    with platform.start("push", tmp_path, "--name", "elsewhere", "-m", "64M", "--timeout", "150") as push:
        note = "elsewhere/0: it listens on 127.0.0.1:5000; it must listen on 0.0.0.0:$PORT"
        push.see(note)
        assert "0 crashed" not in push.text, "it is shown before the health check is over"
        assert push.end() == 1
    assert "elsewhere/0 crashed: failed to accept connections within health check timeout" in push.text
    assert "it listens on 127.0.0.1:5000; it must listen on 0.0.0.0:$PORT" in push.text.splitlines()[-1]
    assert "serving on 5000" in push.text
    platform.ok("delete", "elsewhere", "--yes")


def test_missing_memory_is_reported_at_once(platform: Platform, tmp_path: Path) -> None:
    """What is wanted and what there is, while it waits, and when it gives up."""
    (tmp_path / "index.html").write_text("x")
    platform.ok("push", tmp_path, "--name", "large", "-m", "2G")
    done = platform.run("scale", "large", "50", "--timeout", "20")
    assert done.returncode == 1
    assert "waits: no host has 2048 MiB of memory and 1024 MiB of disk left" in done.stderr
    assert "stop an app, or push it with a smaller --memory or --disk" in done.stderr
    platform.ok("delete", "large", "--yes")


def test_a_changed_page_is_a_new_page(platform: Platform, tmp_path: Path) -> None:
    """A browser that asks with the date and tag of its old copy gets the new one after a push: files keep their times."""
    app, page = tmp_path / "app", tmp_path / "app" / "index.html"
    app.mkdir()
    page.write_text("one")
    os.utime(page, (1_700_000_000, 1_700_000_000))
    platform.ok("push", app, "--name", "dated", "-m", "64M")
    _, _, first = platform.fetch("dated")
    assert first["Last-Modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    since = {"If-Modified-Since": first["Last-Modified"], "If-None-Match": first["ETag"]}
    assert platform.fetch("dated", headers=since)[0] == 304
    page.write_text("two")
    platform.ok("push", app, "--name", "dated")
    until(lambda: platform.apps()["dated"]["previous_running"] == 0, "the new version alone serves")
    assert platform.get("dated") == (200, b"two")
    assert platform.fetch("dated", headers=since)[:2] == (200, b"two")
    platform.ok("delete", "dated", "--yes")


def test_any_file_name_reaches_the_app(platform: Platform, tmp_path: Path) -> None:
    """Also one that is no UTF-8, from a directory that is none either."""
    app = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    app.mkdir()
    (app / "index.html").write_text("x")
    (app / os.fsdecode(b"na\xefve")).write_text("here")
    platform.ok("push", app, "--name", "named", "-m", "64M")
    assert platform.get("named", "/na%EFve")[0] in (200, 404)  # what a server makes of it is its own affair
    found = platform.ok("shell", "named/0", "--", "sh", "-c", "cat /home/vcap/app/na*ve")
    assert found.stdout == "here"
    platform.ok("delete", "named", "--yes")


def test_what_is_far_too_large(platform: Platform) -> None:
    """`push /` is refused while it looks, without a byte packed."""
    done = platform.run("push", "/", "--name", "everything")
    assert done.returncode == 2
    assert "error: cannot push /" in done.stderr
    assert "leave files out with a .cfignore" in done.stderr
    assert "everything" not in platform.apps()


def test_a_large_directory_needs_a_confirmation(platform: Platform, tmp_path: Path) -> None:
    """Without a terminal to ask on, it wants --yes."""
    with (tmp_path / "index.html").open("wb") as file:
        file.truncate(600 << 20)
    done = platform.run("push", tmp_path, "--name", "big")
    assert done.returncode == 2
    assert "has 1 file, 600 MiB" in done.stderr
    assert "confirm with --yes" in done.stderr


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


def test_a_missing_wheel_shows_the_buildpacks_output(platform: Platform, tmp_path: Path) -> None:
    """pip's own complaint is on the terminal, and the status is 1."""
    shutil.copytree(ROOT / "examples" / "hello-flask", tmp_path / "app")
    (tmp_path / "app" / "requirements.txt").write_text("Flask==3.1.3\nabsent-package==1\n")
    done = platform.run("push", tmp_path / "app", "--name", "nowheel")
    assert done.returncode == 1
    assert "absent-package==1" in done.stderr
