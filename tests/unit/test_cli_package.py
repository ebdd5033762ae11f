"""The zip of a push, app names, and what of an app's output may reach a terminal."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from agent.cli import instances, logs, package, push, reach, ui

pytestmark = pytest.mark.unit


def zipped(directory: Path) -> zipfile.ZipFile:
    out = io.BytesIO()
    package.write_zip(directory, out)
    return zipfile.ZipFile(out)


def test_modes_and_links_are_kept(tmp_path: Path) -> None:
    """An executable stays one, and a link is stored as a link."""
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "link").symlink_to("run.sh")
    (tmp_path / "empty").mkdir()
    archive = zipped(tmp_path)
    assert archive.getinfo("run.sh").external_attr >> 16 & 0o777 == 0o755
    assert stat.S_ISLNK(archive.getinfo("link").external_attr >> 16)
    assert archive.read("link") == b"run.sh"
    assert archive.getinfo("empty/").is_dir()


def test_what_cfignore_names_is_left_out(tmp_path: Path) -> None:
    """Patterns leave out, `!` takes back in, and .git never goes."""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("x")
    (tmp_path / "sub").mkdir()
    for name in ("a.log", "keep.log", "sub/b.log", "sub/c.txt", "top.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".cfignore").write_text("# logs\n*.log\n!keep.log\n/top.txt\n")
    assert sorted(zipped(tmp_path).namelist()) == ["keep.log", "sub/", "sub/c.txt"]


def test_vendor_is_never_left_out(tmp_path: Path) -> None:
    """A .gitignore does not count: vendored wheels are ignored by git and needed by the staging."""
    (tmp_path / ".gitignore").write_text("vendor/\n")
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "x.whl").write_text("x")
    assert "vendor/x.whl" in zipped(tmp_path).namelist()


def test_special_files_are_left_out(tmp_path: Path) -> None:
    """A FIFO in the directory neither blocks the push nor is part of it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_text("x")
    assert zipped(tmp_path).namelist() == ["a"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("Hello_App", "hello-app"), ("a" * 80, "a" * 63), ("...", "app"), ("hello-flask", "hello-flask")],
)
def test_an_app_name_is_a_host_name(text: str, name: str) -> None:
    """What cannot be in a host name becomes a dash."""
    assert push.app_name(text) == name


def test_no_control_sequence_of_an_app_reaches_the_terminal() -> None:
    """Escape sequences in a log line are shown, not obeyed; letters of all languages stay."""
    assert reach.printable("grüße\t\x1b[2J\x07\r".encode()) == "grüße\t\\x1b[2J\\x07"


def test_log_lines_are_put_together(capsys: pytest.CaptureFixture[str]) -> None:
    """Chunks of two instances that break lines come out as whole lines, each with its instance."""
    lines = logs.Lines("hello", with_time=True)
    for event in (
        {"at": 0.5, "index": 0, "stream": "stdout", "data": "one\ntw"},
        {"at": 0.5, "index": 1, "stream": "stderr", "data": "other\n"},
        {"at": 0.6, "index": 0, "stream": "stdout", "data": "o\nrest"},
    ):
        lines.add(event)
    lines.flush()
    told = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert told == ["hello/0 out  one", "hello/1 err  other", "hello/0 out  two", "hello/0 out  rest"]


ROWS: list[dict[str, Any]] = [
    {"instance": "aa11", "handle": "h1x", "name": "hello", "app": "g", "index": 0, "state": "RUNNING"},
    {"instance": "bb22", "handle": "h2x", "name": "hello", "app": "g", "index": 1, "state": "RUNNING"},
    {"instance": "cc33", "handle": None, "name": "hello", "app": "g", "index": 0, "state": "CRASHED"},
]


@pytest.mark.parametrize(
    ("wanted", "instance"), [("hello/1", "bb22"), ("hello/0", "aa11"), ("h2", "bb22"), ("aa", "aa11")]
)
def test_an_instance_is_found(wanted: str, instance: str) -> None:
    """APP/INDEX, or any unique beginning of a handle or id; a crashed twin does not hide the running one."""
    assert instances.find(ROWS, wanted)["instance"] == instance


@pytest.mark.parametrize(
    ("wanted", "hint"), [("hello", "hello/0, hello/1"), ("helo/1", "did you mean hello/1?")]
)
def test_an_unclear_instance_is_refused_with_names(wanted: str, hint: str) -> None:
    """Two that match, or none, lead to a hint with names."""
    with pytest.raises(ui.Failure) as failure:
        instances.find(ROWS, wanted)
    assert hint in failure.value.hint
