"""The frame of the command line: what a newcomer sees, hints, exit statuses, start-up time."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from agent.cli import app, reach, ui
from agent.cli.instances import find_app_guid

pytestmark = pytest.mark.unit


def garrison(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **env},
        check=False,
    )


def test_alone_it_shows_five_commands_and_where_to_go() -> None:
    """`garrison` names the five commands of a newcomer and the next step."""
    done = garrison()
    assert done.returncode == 0
    shown = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  garrison ")]
    assert shown == list(app.NEWCOMER)
    assert "garrison --help" in done.stdout


def test_help_names_every_command_and_its_module_exists() -> None:
    """Each row of the command table can be imported and appears in the help."""
    done = garrison("--help")
    for name in app.COMMANDS:
        assert f"\n  {name} " in done.stdout
        assert garrison(name, "--help").returncode == 0, name


def test_help_loads_nothing_that_only_commands_need() -> None:
    """What makes `garrison --help` quick: click and the frame, no event loop, no HTTP, no YAML."""
    program = "import sys; from agent.cli.app import main; main(['--help']); print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines())
    assert not loaded & {
        "asyncio",
        "aiohttp",
        "http.client",
        "msgspec",
        "yaml",
        "nats",
        "pyroute2",
        "container",
    }
    assert {name for name in loaded if name.startswith("agent.")} == {
        "agent.cli", "agent.cli.app", "agent.cli.ui"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("pusj",), "did you mean `garrison push`?"),
        (("push", "--instnces", "2"), "--instances"),
        (("rootfs", "build", "debain"), "did you mean debian?"),
        (("zzz",), "`garrison --help` lists the commands"),
    ],
)
def test_a_misspelt_name_gets_the_nearest(words: tuple[str, ...], hint: str) -> None:
    """A wrong command, option or recipe is refused with status 2 and the nearest right one."""
    done = garrison(*words)
    assert done.returncode == 2
    assert hint in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "why", "next_"),
    [
        (
            ("push", "--memory", "64X", "."),
            "expected a size like 64M or 1G, got '64X'",
            "garrison push --help",
        ),
        (("up", "--bus-port", "70000"), "70000 is not in the range 0<=x<=65535", "garrison up --help"),
        (("up", "--gateway-port", "-1"), "-1 is not in the range 0<=x<=65535", "garrison up --help"),
        (("scale", "hello", "many"), "'many' is not a valid integer", "garrison scale --help"),
        (("config", "chek"), "no such command 'chek'", "did you mean check?"),
        (("completion", "csh"), "'csh' is not one of", "garrison completion --help"),
        (("push", "/nonexistent"), "it is not a directory", ""),
        (("config", "check", "/nonexistent"), "there is no /nonexistent", "garrison config check FILE"),
        (("detach", "--config", "/nonexistent"), "there is no /nonexistent", "--config FILE"),
    ],
)
def test_wrong_usage_is_three_things(words: tuple[str, ...], why: str, next_: str) -> None:
    """What failed, why, what to do next; status 2, and no usage text between."""
    done = garrison(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert why in done.stderr
    assert next_ in done.stderr
    assert "Usage:" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_configuration_is_told_line_by_line(tmp_path: Path) -> None:
    """Each problem with file, line and key path, status 2; also when another command was to use the file."""
    file = tmp_path / "config.yml"
    file.write_text('base_dir: /b\nresources:\n  memory_mbb: 1\nintervals:\n  heartbeat: "10s"\n')
    for words in (("config", "check", str(file)), ("detach", "--config", str(file))):
        done = garrison(*words)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            f"{file}:3  resources.memory_mbb: unknown key; did you mean resources.memory_mb?",
            f"{file}:5  intervals.heartbeat: expected float, got '10s'",
        ]


def test_the_check_looks_at_this_host(tmp_path: Path) -> None:
    """A stack that is not there is a mistake, status 2; a setting of the DEA without effect is told and is none."""
    file = tmp_path / "config.yml"
    file.write_text(
        f"base_dir: {tmp_path}/b\nstacks: [{{name: a, package_path: {tmp_path}/a}}]\nhooks: {{}}\n"
    )
    done = garrison("config", "check", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    stack, hooks = done.stderr.splitlines()
    assert stack == f"{file}:2  stacks[0].package_path: there is no {tmp_path}/a"
    assert hooks.startswith(f"{file}:3  hooks: has no effect here: ")

    (tmp_path / "a/bin").mkdir(parents=True)
    done = garrison("config", "check", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: good\n")
    assert done.stderr.splitlines() == [hooks]


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """`config show` masks passwords, in URLs too."""
    file = tmp_path / "config.yml"
    file.write_text("base_dir: /b\nnats: {servers: ['nats://u:pass1@h:1'], user: u, password: pass2}\n")
    done = garrison("config", "show", str(file), "--json")
    assert json.loads(done.stdout)["nats"]["servers"] == ["nats://***@h:1"]
    assert "pass1" not in done.stdout
    assert "pass2" not in done.stdout


def test_nothing_to_reach_is_status_3(tmp_path: Path) -> None:
    """Without `garrison up` a command says so, says what to do, and leaves with 3."""
    done = garrison("apps", "--state", str(tmp_path))
    assert done.returncode == 3
    assert "garrison up" in done.stderr
    assert done.stdout == ""


def test_a_dead_controller_is_status_3_too(tmp_path: Path) -> None:
    """An up.json left by a killed `up` leads to words and status 3, not to a traceback."""
    facts = {"controller": "http://127.0.0.1:9", "user": "u", "password": "p", "gateway_port": 1,
             "control_socket": str(tmp_path / "no.sock"), "pid": 1}  # fmt: skip
    (tmp_path / "up.json").write_text(json.dumps(facts))
    for words in (("apps",), ("detach",)):
        done = garrison(*words, "--state", str(tmp_path))
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr


def test_no_colour_in_a_pipe() -> None:
    """Output into a pipe has no escape sequences."""
    assert "\033" not in garrison("--help").stdout + garrison("pusj").stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    """A completion script names the variable that makes garrison answer."""
    assert "_GARRISON_COMPLETE" in garrison("completion", shell).stdout


def test_completion_answers_commands() -> None:
    """The completion itself offers commands by their beginning."""
    done = garrison(_GARRISON_COMPLETE="bash_complete", COMP_WORDS="garrison sc", COMP_CWORD="1")
    assert done.stdout.split() == ["plain,scale"]


@pytest.mark.parametrize(
    ("text", "megabytes"), [("64M", 64), ("1G", 1024), ("512", 512), ("64MiB", 64), ("2gb", 2048)]
)
def test_sizes(text: str, megabytes: int) -> None:
    """Sizes are read as people write them."""
    assert ui.parse_size_mb(text) == megabytes


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "64K", "0"])
def test_wrong_sizes(text: str) -> None:
    """What is no size is refused with an example."""
    with pytest.raises(Exception, match="64M"):
        ui.parse_size_mb(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (2048, "2.0 KiB"), (13 << 20, "13 MiB"), (5 << 40, "5120 GiB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    """Sizes are shown in the largest unit that leaves a whole part."""
    assert ui.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(12, "12 s"), (200, "3 min"), (7300, "2 h"), (200_000, "2 d")])
def test_ages(seconds: float, text: str) -> None:
    """Times are shown in one unit."""
    assert ui.age(seconds) == text


def test_a_failure_is_a_document_too(tmp_path: Path) -> None:
    """With --json stdout has one document whatever happens; behind `--` the word is not ours."""
    for words, status in (
        (("push", "--json", "/nonexistent"), 2),
        (("push", "--json", "--state", str(tmp_path), str(tmp_path)), 3),
        (("apps", "--json", "--state", str(tmp_path)), 3),
        (("push", "--jsn", "--json"), 2),
        (("rootfs", "list", "--json", "--stack"), 2),
    ):
        done = garrison(*words)
        document = json.loads(done.stdout)
        assert (done.returncode, document["status"]) == (status, status)
        assert document["error"]
        assert done.stderr.startswith("error: ")
    assert garrison("shell", "--state", str(tmp_path), "a/0", "x", "--json").stdout == ""
    assert garrison("push", "--state", str(tmp_path), "--", "--json").stdout == ""


def test_a_failure_holds_no_control_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    """Its words may be those of a buildpack or of tar; lines stay lines."""
    ui.Failure("a\x1b[2J", "b\x9b1m\rc\nd\te", "see\x07").show()
    assert capsys.readouterr().err == "error: a\\x1b[2J: b\\x9b1m\\x0dc\nd\te\n       see\\x07\n"


class AgentOfNothing:
    """An agent that has no instance."""

    def call(self, _method: str, _path: str) -> list[dict[str, str]]:
        return []


def test_an_app_without_instances_is_found_by_its_guid(tmp_path: Path) -> None:
    """Its staging may have failed here; a name is known of instances only."""
    agent = cast(reach.Peer, AgentOfNothing())
    guid = "0f3c4d5e-1111-4222-8333-444455556666"
    assert find_app_guid(agent, guid, tmp_path, None) == guid
    for other in ("hello", guid[:-1], guid + "0"):
        with pytest.raises(ui.Failure, match="no instance of"):
            find_app_guid(agent, other, tmp_path, None)


def test_a_terminal_that_knows_no_utf_8() -> None:
    """Our own signs have a plain form, and whatever else there is goes as an escape: nothing fails."""
    program = "from agent.cli import ui; ui.escape_unencodable(); print('✓ a… – ü', 'caf\\udce9', chr(0x1f600)); ui.report('✓')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "latin-1"},
    )
    assert done.stdout == b"* a... - \xfc caf\\xe9 \\U0001f600\n"
    assert done.stderr == b"*\n"


@pytest.mark.parametrize(
    ("text", "width", "kept"),
    [
        ("short", 10, "short"), ("0123456789", 10, "0123456789"), ("0123456789x", 10, "012345678…"),
        ("日本語日本語", 7, "日本語…"), ("\033[32m0123456789x\033[0m", 5, "\033[32m0123…\033[0m"),
        ("a\033[32m✓\033[0m bcdefgh", 5, "a\033[32m✓\033[0m b…"),
    ],
)  # fmt: skip
def test_a_line_fits_its_terminal(text: str, width: int, kept: str) -> None:
    """Wide letters count twice, colour not at all, and none is left on."""
    assert ui.cut(text, width) == kept
    assert ui.columns(kept) <= width


def test_a_long_path_is_known_by_its_end() -> None:
    """And a short one stays as it is."""
    assert ui.shortened("examples/hello-flask") == "examples/hello-flask"
    assert ui.shortened("/a/very/long/way/to/the/app", 12) == "…/to/the/app"
    assert ui.columns(ui.shortened("日本語" * 20, 12)) <= 12


def test_every_option_in_a_hint_exists() -> None:
    """Whatever `--option` a text of ours names is one of the commands'."""
    import click

    known = {"--help", "--version", "--debug"}
    for name in app.COMMANDS:
        command = app.cli.get_command(click.Context(app.cli), name)
        assert command is not None
        group = command.commands.values() if isinstance(command, click.Group) else [command]
        known |= {option for one in group for parameter in one.params for option in parameter.opts}
    root = Path(app.__file__).parents[1]
    for file in [*(root / "cli").glob("*.py"), *(root / "dev").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and file.name not in OF_OTHERS:
                assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value)) <= known, (file, node.value)


# Files that run other programs, with options of theirs.
OF_OTHERS = {"shell.py", "children.py", "traces.py"}


@pytest.mark.parametrize("command", ["check", "show"])
def test_config_is_told_without_an_option_that_it_lacks(command: str) -> None:
    """`config check FILE` has no --config: its hint names the argument."""
    done = garrison("config", command, "/nonexistent")
    assert "--config" not in done.stderr
    assert f"garrison config {command} FILE" in done.stderr


def test_a_refused_file_is_one_document_too(tmp_path: Path) -> None:
    """Who reads `config show --json` by a program learns of each problem where it reads; a person reads it on stderr."""
    file = tmp_path / "config.yml"
    file.write_text("base_dir: /srv/g\nintervals:\n  heartbeat: often\nnots: {}\n")
    done = garrison("config", "show", str(file), "--json")
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["status"] == 2
    assert {problem["key"] for problem in document["problems"]} == {"intervals.heartbeat", "nots"}
    assert {problem["line"] for problem in document["problems"]} == {3, 4}
    assert "intervals.heartbeat" in done.stderr
