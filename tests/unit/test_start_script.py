"""The start script in a real bash: whatever a script of the droplet does to its shell, the command runs in the app's directory."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.inside.start import HOME, shell_argv, start_argv

pytestmark = pytest.mark.unit
LOOK = """echo "in ${PWD##*/}, base ${DROPLET_BASE_DIR##*/}, posix ${POSIXLY_CORRECT-no}, words $#, options $-"; umask"""
SEEN = "in app, base vcap, posix no, words 0, options hBc\n0077\n"
OWN = {"PATH": "/usr/bin:/bin"}
EVERY_BUILTIN = "; ".join(
    f"{name}() {{ :; }}"
    for name in (
        *(
            "cd",
            "exec",
            "echo",
            "builtin",
            "command",
            "eval",
            "export",
            "unset",
            "printf",
            "shift",
            "source",
            "set",
        ),
        *("trap", "readonly", "declare", "return", "exit", "type", "test", "/bin/bash"),
    )
)


@dataclass
class Tree:
    """What a start script finds as /home/vcap."""

    home: Path

    def profile(self, name: str, text: str) -> None:
        (self.home / "app/.profile.d" / name).write_text(text + "\n")

    def run(self, argv: tuple[str, ...], env: Mapping[str, str] = OWN) -> subprocess.CompletedProcess[str]:
        words = [word.replace(HOME, str(self.home)) for word in argv]
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            env=env,
            cwd=self.home,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def start(self, command: str = LOOK, env: Mapping[str, str] = OWN, hook: str = "") -> str:
        """What the command prints; it must end well."""
        done = self.run(start_argv(command, hook), env)
        assert done.returncode == 0, done
        return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "vcap/app/.profile.d").mkdir(parents=True)
    return Tree(tmp_path / "vcap")


@pytest.mark.parametrize(
    "script",
    [
        "set -- a b",
        "cd /tmp",
        "set -u; unset HOME PWD OLDPWD",
        "set -f; set -C; set -a; set -m; set -b",
        "set -t",
        "set -e",
        "set -e; trap 'exit 3' ERR",
        "set -o posix",
        "IFS=/abc",
        "break; continue",
        "return 3",
        "trap 'exit 4' EXIT; trap 'true' DEBUG; trap false ERR; trap 'exit 5' HUP TERM",
        "shopt -s nullglob failglob extglob expand_aliases; alias exec=echo cd=echo set=echo POSIXLY_CORRECT=echo",
        "PWD=/x; readonly PWD; script=x; text=y; readonly script text",
        EVERY_BUILTIN,
        "cd() { echo no; }; export -f cd; unset POSIXLY_CORRECT",
        "export CDPATH=/tmp GLOBIGNORE='*' ENV=/x BASH_ENV=/x",
        "if then",
        "exec 3>&1; ulimit -c 0",
        "SECONDS=0; RANDOM=1; unset BASH_VERSION; DROPLET_BASE_DIR=/x",
    ],
)
def test_a_script_may_change_everything_and_the_command_runs(tree: Tree, script: str) -> None:
    """Words, options, directory, functions, aliases, traps, variables of the shell."""
    tree.profile("a.sh", script)
    tree.profile("b with a blank.sh", "export LATER=1")

    assert tree.start() == SEEN
    assert (tree.home / "run.pid").read_text().strip().isdigit()


@pytest.mark.parametrize(
    ("script", "status"), [("exit 3", 3), ("exec sh -c 'exit 4'", 4), ("set -e; false", 1)]
)
def test_a_script_may_end_the_start(tree: Tree, script: str, status: int) -> None:
    """As in any shell: it said so."""
    tree.profile("a.sh", script)
    done = tree.run(start_argv("echo ran", None))
    assert (done.returncode, done.stdout) == (status, "")


def test_what_scripts_export_reaches_the_command_in_their_order(tree: Tree) -> None:
    """Over the app's own variables; the shell itself goes on, so limits and masks do too."""
    tree.profile("1.sh", 'export A="${A}1" B=x PATH="$HOME/bin:$PATH"; umask 022')
    tree.profile("2.sh", 'export A="${A}2"; f() { echo func; }; export -f f')
    tree.profile("no-script.txt", "export A=wrong")
    env = {**OWN, "A": "0", "HOME": "/h"}
    assert tree.start('echo "$A $B $PATH"; umask; f', env) == "012 x /h/bin:/usr/bin:/bin\n0022\nfunc\n"


def test_without_scripts_or_with_unreadable_ones(tree: Tree) -> None:
    """A directory of that name, a broken link, none at all."""
    (tree.home / "app/.profile.d/dir.sh").mkdir()
    (tree.home / "app/.profile.d/link.sh").symlink_to("/nowhere")
    assert tree.start() == SEEN
    for path in (tree.home / "app/.profile.d").iterdir():
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert tree.start() == SEEN


@pytest.mark.parametrize(
    "env",
    [
        {"CDPATH": "/tmp"},
        {"GLOBIGNORE": "*"},
        {"ENV": "/nowhere"},
        {"IFS": "p"},
        {"BASH_COMPAT": "3.2"},
        {"GEM_PATH": "/x"},
        {"OLDPWD": "/x", "PWD": "/x", "SHLVL": "99"},
    ],
)
def test_no_variable_of_the_user_bends_the_start(tree: Tree, env: dict[str, str]) -> None:
    """The scripts are found, the directory is the app's."""
    tree.profile("a.sh", "export A=found")
    assert tree.start(LOOK + "; echo $A", {**OWN, **env}) == SEEN + "found\n"


def test_a_shells_own_file_is_read_for_the_command_alone(tree: Tree, tmp_path: Path) -> None:
    """BASH_ENV is the user's wish for the command's shell, as in the original; not for ours."""
    (tmp_path / "env").write_text("echo read\n")
    assert tree.start("echo ran", {**OWN, "BASH_ENV": str(tmp_path / "env")}) == "read\nran\n"
    assert tree.start("echo ran $POSIXLY_CORRECT", {**OWN, "POSIXLY_CORRECT": "mine"}) == "ran mine\n"


def test_the_command_needs_no_program_of_the_path(tree: Tree) -> None:
    """A PATH that leads nowhere is the app's own affair."""
    assert tree.start("echo ran", {"PATH": "/nowhere"}) == "ran\n"


def test_the_hook_comes_after_the_scripts(tree: Tree) -> None:
    """It is the operator's text, whatever quotes it holds; one that is no shell costs itself only."""
    tree.profile("a.sh", "export A=script")
    assert tree.start("echo $A", hook='A="$A\'s hook"') == "script's hook\n"
    assert tree.start("echo $A", hook="if then") == "script\n"


def test_a_command_is_one_word_however_it_is_written(tree: Tree) -> None:
    """Quotes, dollars, lines."""
    assert tree.start("echo 'a  \"b\"' $((1+1))\necho \\$x") == 'a  "b" 2\n$x\n'


def test_the_app_replaces_the_shell(tree: Tree) -> None:
    """One process from end to end, so that signals reach it; run.pid names it."""
    pid = tree.start("echo $$").strip()
    assert (tree.home / "run.pid").read_text().split() == [pid]


def test_without_an_app_directory_the_start_fails(tree: Tree) -> None:
    """Nothing is run elsewhere."""
    (tree.home / "app/.profile.d").rmdir()
    (tree.home / "app").rmdir()
    done = tree.run(start_argv("echo ran", None))
    assert (done.returncode, done.stdout) == (1, "")
    assert "app: No such file or directory" in done.stderr


def test_a_shell_has_what_the_app_has(tree: Tree) -> None:
    """Scripts sourced, hook run, the app's directory; words come through as they are; no run.pid; a missing app is no obstacle."""
    tree.profile("a.sh", "export A=1; set -- x; cd /tmp; exec() { echo no; }")
    argv = (
        *shell_argv("export B=2"),
        "sh",
        "-c",
        'echo "$A $B ${PWD##*/} $0 $1 $DROPLET_BASE_DIR"',
        "a  b",
        "c'd",
    )
    assert tree.run(argv).stdout == f"1 2 app a  b c'd {tree.home}\n"
    assert not (tree.home / "run.pid").exists()
    assert tree.run((*shell_argv(None), "nowhere-to-be-found")).returncode == 127

    (tree.home / "app").rename(tree.home / "gone")
    assert tree.run((*shell_argv(None), "pwd")).stdout == f"{tree.home}\n"
