"""The zip of a push, app names, and what of an app's output may reach a terminal."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from agent.cli import instances, logs, package, push, reach, trouble, ui
from agent.droplets.archive import Bounds
from agent.droplets.writer import write_tree
from agent.droplets.zip import ZipReader
from agent.instances import instance, launch, life
from agent.instances.listening import Listener, parse

pytestmark = pytest.mark.unit


NO_LIMIT = 1 << 50


def scanned(directory: Path, limit_bytes: int = NO_LIMIT) -> package.PackList:
    return package.scan(directory, lambda files, count: None, limit_bytes)


def packed(directory: Path) -> io.BytesIO:
    out = io.BytesIO()
    package.write_zip(scanned(directory).entries, out, lambda done: None)
    return out


def zipped(directory: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(packed(directory))


def staged(directory: Path, root: Path) -> Path:
    """The tree that the agent makes of the push."""
    root.mkdir()
    bounds = Bounds(total_bytes=1 << 30)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        write_tree(ZipReader(packed(directory), bounds), fd, bounds)
    finally:
        os.close(fd)
    return root


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


@pytest.mark.parametrize("mtime_s", [1_700_000_001, 1_700_000_002, 86_400, 2_000_000_001])
def test_times_are_kept_to_the_second(mtime_s: int, tmp_path: Path) -> None:
    """A page that changes gets another date, so that no browser is told that its old copy is still right."""
    app = tmp_path / "app"
    (app / "sub").mkdir(parents=True)
    (app / "sub" / "page.html").write_text("x")
    (app / "link").symlink_to("sub")
    os.utime(app / "sub" / "page.html", (mtime_s, mtime_s))
    os.utime(app / "link", (mtime_s, mtime_s), follow_symlinks=False)
    os.utime(app / "sub", (mtime_s, mtime_s))
    root = staged(app, tmp_path / "root")
    assert (root / "sub" / "page.html").stat().st_mtime == mtime_s
    assert (root / "sub").stat().st_mtime == mtime_s
    assert (root / "link").lstat().st_mtime == mtime_s


@pytest.mark.parametrize(("mtime_s", "year"), [(0, 1980), (-5, 1980), (1_700_000_001, 2023), (1 << 40, 2107)])
def test_a_zip_has_a_time_for_every_reader(mtime_s: int, year: int) -> None:
    """Readers that know the zip's own field alone get the nearest that it can be."""
    status = os.stat_result((stat.S_IFREG | 0o644, 1, 1, 1, 0, 0, 5, mtime_s, mtime_s, mtime_s))
    info = package._zip_info(package.PackedFile(Path("a"), "a", status))
    assert info.date_time[0] == year
    assert bool(info.extra) is (mtime_s < 1 << 31)


def test_any_name_goes(tmp_path: Path) -> None:
    """UTF-8 or not: the app has the name that the directory has."""
    app = tmp_path / "app"
    app.mkdir()
    names = [b"plain", "gr\u00fc\u00dfe".encode(), b"caf\xe9", b"\xff\xfe", b"a\\b"]
    for name in names:
        (app / os.fsdecode(name)).write_bytes(name)
    root = staged(app, tmp_path / "root")
    assert sorted(os.fsencode(path.name) for path in root.iterdir()) == sorted(names)
    assert (root / os.fsdecode(b"caf\xe9")).read_bytes() == b"caf\xe9"


def test_too_much_is_refused_while_it_looks(tmp_path: Path) -> None:
    """Not a byte is packed before the size is known."""
    (tmp_path / "a").write_bytes(b"x" * 600)
    (tmp_path / "b").write_bytes(b"x" * 600)
    with pytest.raises(ui.Failure, match="cannot push") as failure:
        scanned(tmp_path, 1000)
    assert failure.value.why == "it has more than 1000 bytes of files"
    assert scanned(tmp_path, 1200).content_bytes == 1200


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file that goes while it is packed, as one that is not the person's to read, ends the push with its name."""
    (tmp_path / "a").write_text("x")
    found = scanned(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(ui.Failure) as failure:
        package.write_zip(found.entries, io.BytesIO(), lambda done: None)
    assert failure.value.why == f"{tmp_path / 'a'}: No such file or directory"


def test_a_deep_directory(tmp_path: Path) -> None:
    """As deep as a path can be."""
    at = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        Path("a").write_text("x")
        assert scanned(tmp_path).entries[-1].name == "d/" * 1500 + "a"
    finally:
        os.chdir(at)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # deeper than pytest can clean up


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
    lines = logs.LogLines("hello", with_time=True)
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


@pytest.mark.parametrize(
    ("pair", "variable"),
    [
        ("A=1", ("A", "1")), ("A.B=1", ("A.B", "1")), ("a-b=", ("a-b", "")), ("A=b=c", ("A", "b=c")), ("1=2", ("1", "2")),
        ("A= x ", ("A", " x ")),
    ],
)  # fmt: skip
def test_a_variable_has_any_name(pair: str, variable: tuple[str, str]) -> None:
    """Spring wants dots; whatever the kernel takes goes."""
    assert push._environment((pair,)) == dict([variable])


@pytest.mark.parametrize("pair", ["A", "=1", "", "A B=1", " A=1", "A=\udcff"])
def test_what_is_no_variable(pair: str) -> None:
    """Neither name nor value, or none that a message can carry."""
    with pytest.raises(ui.Failure) as failure:
        push._environment((pair,))
    assert failure.value.status == ui.USAGE


TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000  2000        0 1 1 0 100 0 0 10 0
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  2000        0 1 1 0 100 0 0 10 0
   2: 0200FE0A:1F90 0100FE0A:D2A4 01 00000000:00000000 00:00000000 00000000  2000        0 1 1 0 100 0 0 10 0
   x: garbage
"""
TCP6 = """  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 0000000000000000FFFF00000100007F:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000
   2: 000000:1F90 0:0 0A
"""


def test_listeners_are_read_as_the_kernel_shows_them() -> None:
    """Of both families, without what is connected and what is no row."""
    assert parse(TCP) == (Listener("0.0.0.0", 8080), Listener("127.0.0.1", 5000))
    assert parse(TCP6) == (
        Listener("127.0.0.1", 3001), Listener("::", 8080), Listener("::1", 3000)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sockets", "where"),
    [
        ([], "it listens on no port"),
        ([("127.0.0.1", 5000)], "it listens on 127.0.0.1:5000"),
        ([("0.0.0.0", 3000)], "it listens on 0.0.0.0:3000"),
        ([("127.0.0.1", 8080)], "it listens on 127.0.0.1:8080 only, which is not reachable from outside"),
        ([("::1", 8080)], "it listens on [::1]:8080 only, which is not reachable from outside"),
        ([("0.0.0.0", 8080), ("127.0.0.1", 9229)], None),
        ([("::", 8080)], None),
    ],
)
def test_where_an_app_listens_instead(sockets: list[tuple[str, int]], where: str | None) -> None:
    """The port that it was given is 8080."""
    answer = {"port": 8080, "listening": [{"address": a, "port": p} for a, p in sockets]}
    assert trouble.where_it_listens(answer) == where


def test_what_the_agent_says_is_known() -> None:
    """The hints go by the descriptions of exits."""
    assert (trouble.NOT_LISTENING, trouble.NO_COMMAND, trouble.OUT_OF_MEMORY) == (
        life.NOT_HEALTHY, launch.NO_COMMAND, instance.OUT_OF_MEMORY,
    )  # fmt: skip
    hint = trouble.hint_for(life.NOT_HEALTHY, "hello", "it listens on 127.0.0.1:5000")
    assert hint == "it listens on 127.0.0.1:5000; it must listen on 0.0.0.0:$PORT"


def test_what_lasts_is_told() -> None:
    """Not what was so for a moment."""
    seen = trouble.Seen()
    assert seen.lasting({"a": "A", "b": "B"}, 10) == []
    assert seen.lasting({"a": "A"}, 12) == []
    assert seen.lasting({"a": "A", "b": "B"}, 13) == ["A"]
