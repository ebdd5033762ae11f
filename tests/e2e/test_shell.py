"""`garrison shell` with a whole platform: a command there has the environment of the app."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
WEB = "web: exec python3 -m http.server $PORT\n"
PROFILE = """export FROM_PROFILE="profile of $GREETING" PATH="$HOME/bin:$PATH"
set -- a b
cd /tmp
"""


@pytest.fixture(scope="module")
def app(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("tool")
    (directory / "Procfile").write_text(WEB)
    (directory / ".profile.d").mkdir()
    (directory / ".profile.d/path.sh").write_text(PROFILE)
    (directory / "bin").mkdir()
    (directory / "bin/flask").write_text('#!/bin/sh\necho "flask $* in $PWD for $GREETING"\n')
    (directory / "bin/flask").chmod(0o755)
    env = ("-e", "GREETING=hello world", "-e", "LOGS=$HOME/logs", "-e", "PASSWORD=pa$$word")
    platform.ok("push", directory, "--name", "tool", "-m", "64M", *env)
    yield "tool"
    platform.ok("delete", "tool", "--yes")


def environment(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in text.split("\0") if word)


def test_a_command_has_the_apps_environment(platform: Platform, app: str) -> None:
    """Name by name that of the app's own process, .profile.d and user variables included."""
    mine = environment(platform.ok("shell", f"{app}/0", "--", "cat", "/proc/self/environ").stdout)
    script = "cat /proc/$(cat /home/vcap/run.pid)/environ"
    the_apps = environment(platform.ok("shell", f"{app}/0", "--", "sh", "-c", script).stdout)

    assert mine["FROM_PROFILE"] == "profile of hello world"
    assert (mine["LOGS"], mine["PASSWORD"]) == ("/home/vcap/app/logs", "pa$$word")
    assert json.loads(mine["VCAP_APPLICATION"])["instance_index"] == 0
    assert mine["PORT"] == mine["VCAP_APP_PORT"] != ""
    assert {name: mine.get(name) for name in the_apps if name != "_"} == {
        name: value for name, value in the_apps.items() if name != "_"
    }


def test_a_program_of_the_app_runs_in_its_directory(platform: Platform, app: str) -> None:
    """`flask db upgrade`, found by the PATH that .profile.d made."""
    done = platform.ok("shell", f"{app}/0", "--", "flask", "db", "up  grade")
    assert done.stdout == "flask db up  grade in /home/vcap/app for hello world\n"
    assert platform.run("shell", f"{app}/0", "--", "nowhere").returncode == 127


def test_root_has_the_variables_and_none_of_the_scripts(platform: Platform, app: str) -> None:
    """The way in where a script of the droplet is what is broken."""
    found = environment(platform.ok("shell", "--root", f"{app}/0", "--", "cat", "/proc/self/environ").stdout)
    assert "FROM_PROFILE" not in found
    assert (found["HOME"], found["USER"], found["GREETING"]) == ("/root", "root", "hello world")
    assert found["PATH"].startswith("/usr/local/sbin:")
    assert platform.ok("shell", "--root", f"{app}/0", "--", "pwd").stdout == "/root\n"


def test_no_variable_shows_in_the_arguments_of_the_host(platform: Platform, app: str) -> None:
    """Neither of wsh nor of anything else outside or inside: whoever may read /proc reads no password."""
    command = [sys.executable, "-m", "agent", "shell", "--state", str(platform.state), f"{app}/0", "--"]
    process = subprocess.Popen(
        [*command, "sh", "-c", "echo on; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    found = {int(pid): arguments_of(pid) for pid in os.listdir("/proc") if pid.isdigit()}
    assert b"wsh" in found[process.pid]
    assert not [pid for pid, words in found.items() if b"pa$$word" in words]
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()


def arguments_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""
