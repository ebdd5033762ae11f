"""What a buildpack and a Procfile say of an app: read loosely, and what is announced is what runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from agent.staging.buildpacks import (
    Buildpack,
    Release,
    StagingFailed,
    decide,
    label,
    parse_procfile,
    parse_release,
)
from agent.staging.steps import described, may_be_packed, variable_files
from container import ExitStatus

pytestmark = pytest.mark.unit

PACK = Buildpack("pack", "key", Path("/pack"))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"Ruby\n", "Ruby"),
        (b"\n  \r\n  Node.js 18 \r\nmore\n", "Node.js 18"),
        (b"", ""),
        (b"\n\n", ""),
        (b"\xff\xfe", "��"),
        (b"a\x1b[31mred\x07", "a [31mred"),
        (b"x" * 3_000_000, "x" * 255),
        ("ä".encode() * 200, "ä" * 127),
    ],
)
def test_a_label_is_one_line_of_255_bytes(said: bytes, shown: str) -> None:
    """The first line of `bin/detect` that is not empty, cut between two characters, harmless on a terminal."""
    assert label(said) == shown


@pytest.mark.parametrize(
    ("text", "processes"),
    [
        (b"web: ./run --port $PORT\n", {"web": "./run --port $PORT"}),
        (b"web: ./run\r\nworker: ./work\r\n", {"web": "./run", "worker": "./work"}),
        (b"# all of it\nweb: ./run # one\n\nclock: ./tick\n", {"web": "./run", "clock": "./tick"}),
        (b"web: ./first\nweb: ./last\n", {"web": "./last"}),
        (b"web: ./run\nworker:\nclock: ~\nrelease: null\n", {"web": "./run", "worker": "", "clock": "", "release": ""}),
        (b"web: ./run\nworker: true\nclock: 5\nday: 2024-02-31\nodd: 0x1F\n",
         {"web": "./run", "worker": "true", "clock": "5", "day": "2024-02-31", "odd": "0x1F"}),
        (b"web: yes\n", {"web": "yes"}),
        (b"web: \"./run 'a b'\"\n", {"web": "./run 'a b'"}),
        (b"web:\t./run\n", {"web": "./run"}),
        (b"\xef\xbb\xbfweb: ./run\n", {"web": "./run"}),
        (b"web: >\n  ./run\n  --more\n", {"web": "./run --more"}),
        (b"web: ./run\nlist: [a, b]\nmap: {a: b}\n", {"web": "./run"}),
        (b"web: !!python/object:os.system ./run\n", {"web": "./run"}),
        (b"", {}),
        (b"# nothing\n", {}),
    ],
)  # fmt: skip
def test_a_procfile_is_a_map_of_words(text: bytes, processes: dict[str, str]) -> None:
    """The words that stand there; of a type without a command the type; what can be no command is left out."""
    assert parse_procfile(text) == processes
    assert parse_release(yaml.safe_dump({"default_process_types": processes}).encode()) == Release(processes)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"- web\n", "expected a map, got a list"),
        (b"./run\n", "expected a map, got a text"),
        (b"web: [a]\n", "web: expected a command"),
        (b"web: {a: b}\n", "web: expected a command"),
        (b"web: a: b\n", "line 1: "),
        (b'web: "a\\0b"\n', "a NUL byte"),
        (b"? [a]\n: b\n", "line 1: "),
        (b"[" * 5000, "line 1: "),
    ],
)
def test_what_is_no_procfile(text: bytes, why: str) -> None:
    """An error of the app's, that says where."""
    with pytest.raises(StagingFailed) as failed:
        parse_procfile(text)
    assert failed.value.message.startswith("Procfile: ")
    assert why in failed.value.message


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (b"", Release()),
        (b"---\naddons: []\nconfig_vars:\n  A: 1\n", Release()),
        (b"default_process_types:\n", Release()),
        (b"default_process_types: {web: ./run, console: true}\n", Release({"web": "./run", "console": "true"})),
        (b"--- !ruby/object:Hash\ndefault_process_types:\r\n  web: ./run\r\n", Release({"web": "./run"})),
    ],
)  # fmt: skip
def test_a_release_is_read_loosely(text: bytes, release: Release) -> None:
    """Only the process types mean something; none of them must be there."""
    assert parse_release(text) == release


@pytest.mark.parametrize(
    "text", [b"[1, 2]", b"default_process_types: [web]", b"default_process_types: {web: [a]}"]
)
def test_what_is_no_release(text: bytes) -> None:
    """An error of the buildpack's."""
    with pytest.raises(StagingFailed) as failed:
        parse_release(text)
    assert failed.value.kind == "BuildpackReleaseFailed"


@pytest.mark.parametrize(
    ("given", "procfile", "released", "command", "processes"),
    [
        ("./mine", {"web": "./p"}, {"web": "./r"}, "./mine", {"web": "./p"}),
        (None, {"web": "./p", "worker": "./w"}, {"web": "./r"}, "./p", {"web": "./p", "worker": "./w"}),
        (None, {"worker": "./w"}, {"web": "./r"}, "./r", {"worker": "./w", "web": "./r"}),
        (None, {"web": ""}, {"web": "./r"}, "./r", {"web": "./r"}),
        (None, None, {"web": "./r", "console": "./c"}, "./r", {"web": "./r", "console": "./c"}),
        (None, {"web": ""}, {}, None, {"web": ""}),
        (None, None, {}, None, {}),
    ],
)
def test_what_is_announced_is_what_runs(
    given: str | None,
    procfile: dict[str, str] | None,
    released: dict[str, str],
    command: str | None,
    processes: dict[str, str],
) -> None:
    """The line for the developer, the reply and the droplet's own file name one command."""
    outcome = decide(PACK, "Label", given, procfile, Release(released))
    info = yaml.safe_load(outcome.staging_info())
    assert (outcome.start_command, outcome.processes) == (command, processes)
    assert info["start_command"] == (command or "")
    assert info["effective_procfile"] == processes
    assert outcome.announced().startswith(
        f"-----> Start command: {command} (" if command else "-----> No start command: "
    )


def test_variables_become_files() -> None:
    """Of two with one name the last; a name that leads elsewhere or is longer than a file's is left out."""
    pairs = [
        ("A", "1"),
        ("../up", "x"),
        ("a/b", "x"),
        (".", "x"),
        ("..", "x"),
        ("n" * 256, "x"),
        ("A", "two\n"),
        ("É", ""),
    ]
    assert [(entry.path, entry.data, entry.mode) for entry in variable_files(pairs)] == [
        ("/tmp/env/A", b"two\n", 0o600),
        ("/tmp/env/É", b"", 0o600),
    ]


def test_a_file_that_changes_under_the_packer_is_no_failure() -> None:
    """tar ends with 1 then; with 2, or by a signal, it failed."""
    assert [may_be_packed(ExitStatus(code=code)) for code in (0, 1, 2)] == [True, True, False]
    assert not may_be_packed(ExitStatus(signal=9))
    assert not may_be_packed(ExitStatus(lost=True))


def test_an_end_in_words() -> None:
    """For the developer's log."""
    ends = (ExitStatus(code=3), ExitStatus(signal=9), ExitStatus(lost=True))
    assert [described(end) for end in ends] == ["exit status 3", "signal 9", "nobody knows how it ended"]
