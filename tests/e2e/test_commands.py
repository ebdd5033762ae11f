"""The command line as a user sees it, with a whole platform: progress, Ctrl-C, hints, following logs, exit statuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Platform, garrison
from terminal import Terminal

from agent.cli import ui

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ECHO = """web: mkfifo say; python3 -m http.server $PORT >/dev/null 2>&1 & while read -r line; do echo "$line"; done <> say
"""


def until(true: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def talker(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], None]]:
    """An app `talker` with two instances; calling the fixture makes instance 0 say a line."""
    directory = tmp_path_factory.mktemp("talker")
    (directory / "Procfile").write_text(ECHO)
    platform.ok("push", directory, "--name", "talker", "-i", "2", "-m", "64M")

    def say(line: str) -> None:
        platform.ok("shell", "talker/0", "--", "sh", "-c", f"echo '{line}' > /home/vcap/app/say")

    yield say
    platform.ok("delete", "talker", "--yes")


def test_a_push_on_a_terminal_moves_one_line_and_leaves_whole_ones(
    platform: Platform, tmp_path: Path
) -> None:
    """Colour and a moving line while it works; in the end the same words as in a pipe. NO_COLOR is obeyed."""
    (tmp_path / "index.html").write_text("x")
    push = ("push", "--state", platform.state, tmp_path, "--name", "site", "-m", "64M")
    coloured, plain = Terminal(*push), Terminal("apps", "--state", platform.state, env={"NO_COLOR": "1"})
    assert coloured.end() == 0, coloured.text
    assert "\r\033[K" in coloured.text
    assert "\033[32m✓" in coloured.text
    last = coloured.text.rstrip().splitlines()[-1]
    assert f"http://site.localhost:{platform.port}" in last
    assert plain.end() == 0
    assert "\033[" not in plain.text
    platform.ok("delete", "site", "--yes")


def test_ctrl_c_in_a_push_stops_the_staging(platform: Platform) -> None:
    """Status 130, words on how things are now, and nothing of it anywhere."""
    app = ROOT / "examples" / "hello-flask"
    push = Terminal("push", "--state", platform.state, app, "--name", "halted", "-m", "64M")
    push.see("Installing 8 wheels")
    push.press_ctrl_c()
    assert push.end() == 130, push.text
    assert "push of halted interrupted: nothing was changed" in push.text
    assert "there is no app halted" in push.text
    until(lambda: not list((platform.state / "agent" / "staging").iterdir()), "its files are gone")
    assert "halted" not in platform.apps()


def test_ctrl_c_while_it_packs(platform: Platform, tmp_path: Path) -> None:
    """Nothing has begun by then, and that is what it says."""
    with (tmp_path / "index.html").open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(1 << 20))
    push = Terminal("push", "--state", platform.state, tmp_path, "--name", "early")
    push.see("MiB of 400 MiB")
    push.press_ctrl_c()
    assert push.end() == 130, push.text
    assert "push of early interrupted: nothing was changed" in push.text
    assert "Traceback" not in push.text
    assert "early" not in platform.apps()


def test_a_second_push_of_one_app_is_refused(platform: Platform, tmp_path: Path) -> None:
    """It changes nothing, says so, and the first one's code serves in the end."""
    shutil.copytree(ROOT / "examples" / "hello-flask", tmp_path / "flask")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("second")
    first = Terminal("push", "--state", platform.state, tmp_path / "flask", "--name", "twice", "-m", "64M")
    first.see("Installing 8 wheels")
    second = platform.run("push", tmp_path / "site", "--name", "twice", "--json")
    assert second.returncode == 1
    assert "it is being pushed already; nothing was changed" in second.stderr
    assert json.loads(second.stdout)["error"] == "cannot push twice"
    assert first.end() == 0, first.text
    assert platform.get("twice")[1].startswith(b"Hello")
    platform.ok("delete", "twice", "--yes")


def test_a_narrow_terminal_without_utf_8(platform: Platform, tmp_path: Path) -> None:
    """At 50 columns no line of progress wraps and the table stands on end; a Latin-1 terminal gets plain signs."""
    (tmp_path / "index.html").write_text("x")
    latin = {"PYTHONIOENCODING": "latin-1"}
    push = Terminal(
        "push", "--state", platform.state, tmp_path, "--name", "narrow", "-m", "64M", columns=50, env=latin
    )
    assert push.end() == 0, push.text
    assert "narrow/0 \033[32m*\033[0m running" in push.text
    moves = [move for move in re.findall(r"\r\033\[K([^\r\n]*)(?=\r\033)", push.text) if move]
    assert moves
    assert all(ui.columns(move) < 50 for move in moves), moves
    apps = Terminal("apps", "--state", platform.state, columns=50, env={"NO_COLOR": "1"})
    assert apps.end() == 0
    lines = apps.text.splitlines()
    row = lines[lines.index("narrow") :]
    assert row[1].split() == ["STATE", "running"]
    assert row[4].split() == ["ROUTE", f"http://narrow.localhost:{platform.port}"]
    platform.ok("delete", "narrow", "--yes")


def test_ctrl_c_in_a_second_push_leaves_the_first(platform: Platform, tmp_path: Path) -> None:
    """What ran before runs on."""
    (tmp_path / "index.html").write_text("one")
    platform.ok("push", tmp_path, "--name", "kept", "-m", "64M")
    shutil.copytree(ROOT / "examples" / "hello-flask", tmp_path / "flask")
    push = Terminal("push", "--state", platform.state, tmp_path / "flask", "--name", "kept")
    push.see("Installing 8 wheels")
    push.press_ctrl_c()
    assert push.end() == 130, push.text
    assert "kept is running, 1 of 1 running" in push.text
    assert platform.get("kept") == (200, b"one")
    platform.ok("delete", "kept", "--yes")


def test_a_quiet_push_that_fails_shows_the_last_lines(platform: Platform, tmp_path: Path) -> None:
    """Quiet is about success: of a failure the buildpack's own end is shown, and what to do."""
    shutil.copytree(ROOT / "examples" / "hello-flask", tmp_path / "app")
    (tmp_path / "app" / "requirements.txt").write_text("absent-package==1\n")
    done = platform.run("push", tmp_path / "app", "--name", "nowheel", "--quiet")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No matching distribution found for absent-package==1" in done.stderr
    assert "error: nowheel was not staged: Buildpack compilation step failed" in done.stderr
    assert "nowheel" not in platform.apps()


def test_json_is_one_document_and_nothing_else(platform: Platform, talker: Callable[[str], None]) -> None:
    """Bytes and seconds, for scripts."""
    (row,) = json.loads(platform.ok("apps", "--json").stdout)
    assert (row["name"], row["instances"], row["memory_limit_bytes"]) == ("talker", 2, 64 << 20)
    assert row["endpoints"]


def test_logs_follow_what_is_said_over_a_restart(platform: Platform, talker: Callable[[str], None]) -> None:
    """One line each with time, instance and stream; Ctrl-C ends it with 130."""
    talker("said before")
    until(lambda: "said before" in platform.ok("logs", "talker/0").stdout, "it is in the log")
    assert "said before" not in platform.ok("logs", "talker/1").stdout
    following = Terminal("logs", "--state", platform.state, "talker/0", "-f")
    following.see("said before")
    talker("said while following")
    following.see("said while following")
    platform.ok("stop", "talker")
    following.see("stopped on request")
    platform.ok("start", "talker")
    talker("said after")
    following.see("said after")
    following.press_ctrl_c()
    assert following.end() == 130
    (line,) = [line for line in following.text.splitlines() if "while" in line]
    assert line[2] == ":"
    assert line.endswith("said while following")
    assert "talker/0" in line


def test_a_shell_on_a_terminal(platform: Platform, talker: Callable[[str], None]) -> None:
    """A prompt, the app's directory, the exit status of the shell."""
    shell = Terminal("shell", "--state", platform.state, "talker/1")
    shell.see("vcap@")
    shell.type("tty; echo in-$((40 + 2)); exit 3\r")
    shell.see("in-42")
    assert shell.end() == 3
    assert "/dev/pts/" in shell.text


def test_a_stop_ends_an_open_shell(platform: Platform, talker: Callable[[str], None]) -> None:
    """It does not wait for it until the grace is over, and who sits in it reads why."""
    shell = Terminal("shell", "--state", platform.state, "talker/1")
    shell.see("vcap@")
    platform.ok("stop", "talker")
    assert shell.end() == 129, f"hung up, not killed when the grace was over: {shell.text}"
    assert "the container is being stopped" in shell.text
    platform.ok("start", "talker")


def test_wrong_names_get_the_nearest(platform: Platform, talker: Callable[[str], None]) -> None:
    """Apps and instances are hinted at too, with status 1."""
    for words, hint in (
        (("stop", "talkr"), "did you mean talker?"),
        (("logs", "tlker"), "did you mean talker?"),
        (("shell", "talker/7"), "did you mean talker/"),
    ):
        done = platform.run(*words)
        assert done.returncode == 1
        assert hint in done.stderr


def test_what_is_destructive_asks(platform: Platform, talker: Callable[[str], None]) -> None:
    """On a terminal it says what will go and takes a no; without one it wants --yes."""
    asked = Terminal("delete", "--state", platform.state, "talker")
    asked.see("stops 2 instances, removes package, droplet and cache. Continue? [y/N]")
    asked.type("n\r")
    assert asked.end() == 1
    refused = platform.run("delete", "talker")
    assert refused.returncode == 2
    assert "stops 2 instances" in refused.stderr
    assert "confirm with --yes" in refused.stderr
    assert "talker" in platform.apps()


def test_completion_lists_apps_and_instances(platform: Platform, talker: Callable[[str], None]) -> None:
    """By their beginnings."""
    for line, word in (("garrison stop ta", "plain,talker"), ("garrison shell talker/", "plain,talker/1")):
        done = garrison(
            _GARRISON_COMPLETE="bash_complete",
            COMP_WORDS=line,
            COMP_CWORD="2",
            GARRISON_STATE=str(platform.state),
        )
        assert word in done.stdout.split()


def test_detach_leaves_the_apps_and_up_starts_the_agent_again(
    platform: Platform, talker: Callable[[str], None]
) -> None:
    """It answers before, between and after, and its output is whole."""
    talker("before the detach")
    status = platform.get("talker")[0]
    platform.ok("detach")
    assert platform.get("talker")[0] == status
    until(lambda: platform.run("logs", "talker").returncode == 0, "the agent is back")
    assert "before the detach" in platform.ok("logs", "talker/0").stdout
    until(lambda: platform.apps()["talker"]["running"] == 2, "both instances are known again")


def test_a_second_up_on_the_same_state_is_refused(platform: Platform) -> None:
    """Two of them would fight for one host."""
    done = platform.run("up", "--gateway-port", "0", "--bus-port", "0")
    assert done.returncode == 1
    assert "garrison up runs already" in done.stderr
