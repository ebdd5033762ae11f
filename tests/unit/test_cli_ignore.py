"""`.cfignore` is the language of gitignore(5): asked of git itself, pattern by pattern and tree by tree."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.cli import ignore, package

pytestmark = pytest.mark.unit

NO_CONFIG = {
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "PATH": "/usr/bin:/bin",
}


def kept_by_git(top: Path) -> list[bytes]:
    """The files that `git add .` would take with `.cfignore` as its ignore file."""
    if not (top / ".git").exists():
        subprocess.run(["git", "init", "-q", str(top)], check=True, env=NO_CONFIG)
        (top / ".git" / "info" / "exclude").unlink(missing_ok=True)
    done = subprocess.run(
        ["git", "ls-files", "-z", "--others", "--exclude-per-directory=.cfignore"],
        cwd=top,
        env=NO_CONFIG,
        capture_output=True,
        check=True,
    )
    return sorted(name for name in done.stdout.split(b"\0") if name)


def kept(top: Path) -> list[bytes]:
    found = package.scan(top, lambda files, count: None, 1 << 40)
    return sorted(
        os.fsencode(entry.name) for entry in found.entries if entry.path.is_symlink() or entry.path.is_file()
    )


def make(top: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)


@pytest.fixture
def no_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """git has no patterns of its own; ours are asked for in a test of their own."""
    monkeypatch.setattr(ignore, "DEFAULTS", ())


TREE = (
    "a", "b", "ab", "a b", "a ", "abc.txt", "b.log", "#a", "!a", "[a]", "a\\b", "é", "foo", "debug.log", "\t",
    "d/a", "d/b.log", "d/e/a", "d/e/b.log", "d/e/f/a", "d/e/f/b.log", "foo1/foo/a", "foo1/foo/foo/b",
    "build/x", "src/build/x", "src/build/keep", "node_modules/m/i.js", "src/node_modules/m/i.js", "logs/1.log",
    "logs/keep/2.log", ".env", "conf/.env", ".hidden/x", "a-b", "a1", "a2", "aé", "config/secrets.yml",
)  # fmt: skip

PATTERNS = (
    "a", "/a", "a/", "*", "*\n!*/\n!*.log", "*.log", "!*.log", "*.log\n!b.log", "/*.log", "d/*.log", "d/**",
    "d/**\n!d/e", "d/*\n!d/e/", "**/a", "**/e/a", "d/**/a", "d/**/b.log", "**/build", "build/", "/build/",
    "build", "src/build/*\n!src/build/keep", "/*\n!/src", "/*\n!/src/\n/src/*\n!/src/build/", "node_modules",
    "node_modules/", "/node_modules", "**/node_modules/**", ".env", "/.env", ".*", "?", "a?", "a[12]", "a[!1]",
    "a[^1]", "a[1-2]", "[[:alpha:]]", "a[[:digit:]]", "\\#a", "#a", "\\!a", "!a", "\\[a\\]", "[a]", "a\\\\b",
    "a\\b", "a ", "a\\ ", "a b", "a\\ b", " a", "\t", "é", "a?é", "**", "**/", "*/", "/", "//", "", "!",
    "d/e", "d/e/", "/d/e", "d//e", "./a", "../a", "foo*", "foo*/", "foo*/foo", "**/foo", "foo/**", "**/foo/**",
    "foo1/**/foo", "foo1/**/foo/", "d/**/", "d/**/*", "/**", "**a", "a**", "d/**a", "d**/a", "***", "a\r",
    "config/secrets.yml", "secrets.yml", "logs/*\n!logs/keep", "logs\n!logs/keep/2.log", "[", "[a", "a]", "[]",
    "[]a]", "[!]", "\\", "a\\", "*\\", "*.[lt]og", "{a,b}", "a|b", "^a", "a$", "(a)", ".", "..", "+", "a+",
    "\ufeffa", "[[:space:]]", "[a-]", "[-a]", "[b-a]", "*b*", "*.*", "d/*/a", "/*/*/a", "*/a", "*/*/a",
)  # fmt: skip


@pytest.mark.usefixtures("no_defaults")
@pytest.mark.parametrize("patterns", PATTERNS, ids=repr)
def test_a_pattern_leaves_out_what_git_leaves_out(patterns: str, tmp_path: Path) -> None:
    """The same tree and patterns, the same files in the end."""
    make(tmp_path, dict.fromkeys(TREE, "x") | {".cfignore": f"{patterns}\n"})
    assert kept(tmp_path) == kept_by_git(tmp_path)


@pytest.mark.usefixtures("no_defaults")
def test_every_directory_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    """The nearest file with a pattern that fits decides, and a slash means that file's directory."""
    make(
        tmp_path,
        dict.fromkeys(TREE, "x")
        | {
            ".cfignore": "*.log\n/src\n!/src/\n.env\n",
            "d/.cfignore": "!b.log\n/a\n",
            "d/e/.cfignore": "*.log\n",
            "d/e/f/.cfignore": "!*.log\n!a\n",
            "conf/.cfignore": "!/.env\n",
            "src/.cfignore": "build/\n",
        },
    )
    assert kept(tmp_path) == kept_by_git(tmp_path)
    assert b"d/b.log" in kept(tmp_path)
    assert b"d/a" not in kept(tmp_path)


@pytest.mark.usefixtures("no_defaults")
def test_bytes_are_bytes(tmp_path: Path) -> None:
    """Neither a name nor a pattern has to be UTF-8; a byte order mark and ends of lines of Windows are not part of one."""
    for name in (b"caf\xe9", b"caf\xe8", b"x.log"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_text("x")
    (tmp_path / ".cfignore").write_bytes(b"\xef\xbb\xbfcaf\xe9\r\n*.log\r\n")
    assert kept(tmp_path) == kept_by_git(tmp_path) == [b".cfignore", b"caf\xe8"]


@pytest.mark.usefixtures("no_defaults")
def test_a_link_is_no_directory(tmp_path: Path) -> None:
    """`link/` does not name a link to a directory, and what is behind it is not walked."""
    make(tmp_path, {"real/x": "x", ".cfignore": "link/\n"})
    (tmp_path / "link").symlink_to("real")
    assert kept(tmp_path) == kept_by_git(tmp_path) == [b".cfignore", b"link", b"real/x"]


NAMES = st.sampled_from(["a", "b", "ab", "c.log", "d"])
PIECES = st.sampled_from(
    ["a", "b", "ab", "c.log", "d", "*", "**", "?", "*.log", "[ab]", "a*", "*b", "**b", "[!a]"]
)
LINES = st.builds(
    lambda negated, lead, pieces, end: negated + lead + "/".join(pieces) + end,
    st.sampled_from(["", "", "!"]), st.sampled_from(["", "", "/"]), st.lists(PIECES, min_size=1, max_size=4),
    st.sampled_from(["", "", "/", " "]),
)  # fmt: skip


@given(
    paths=st.lists(st.lists(NAMES, min_size=1, max_size=4), min_size=1, max_size=12),
    lines=st.lists(LINES, min_size=1, max_size=5),
    below=st.lists(LINES, max_size=3),
)
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.usefixtures("no_defaults")
def test_any_tree_and_any_patterns(paths: list[list[str]], lines: list[str], below: list[str]) -> None:
    """Random patterns in two directories over random trees: never another answer than git's."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        (top / "a").mkdir()
        (top / ".cfignore").write_text("\n".join(lines))
        (top / "a" / ".cfignore").write_text("\n".join(below))
        for path in paths:
            file = top.joinpath(*path)
            if all(not parent.is_file() for parent in file.parents) and not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("x")
        assert kept(top) == kept_by_git(top)


def test_what_is_left_out_without_being_named(tmp_path: Path) -> None:
    """The defaults of `cf push`, and what only works where it was made; a pattern may take all but history back in."""
    names = [
        ".DS_Store", ".git/HEAD", ".gitignore", ".hg/x", ".svn/x", "_darcs/x", "manifest.yml", "sub/manifest.yml",
        "__pycache__/x.pyc", "sub/x.pyc", ".venv/bin/python", "app.py", "sub/.env", "vendor/x.whl",
    ]  # fmt: skip
    make(tmp_path, dict.fromkeys(names, ""))
    assert kept(tmp_path) == [b"app.py", b"sub/.env", b"vendor/x.whl"]
    make(tmp_path, {".cfignore": "!manifest.yml\n!.git\n"})
    assert kept(tmp_path) == [b"app.py", b"manifest.yml", b"sub/.env", b"sub/manifest.yml", b"vendor/x.whl"]


def test_gitignore_stands_in_where_there_is_no_cfignore(tmp_path: Path) -> None:
    """An app with a `.gitignore` alone has its secrets left out; a `.cfignore` at the top, even an empty one, takes its place."""
    make(
        tmp_path,
        {
            ".gitignore": ".env\n",
            ".env": "secret",
            "app.py": "",
            "sub/.gitignore": "*.key\n",
            "sub/a.key": "",
        },
    )
    found = package.scan(tmp_path, lambda files, count: None, 1 << 40)
    assert [entry.name for entry in found.entries] == ["app.py", "sub"]
    assert found.ignore_files == (".gitignore",)
    make(tmp_path, {"sub/.cfignore": "!a.key"})
    assert kept(tmp_path) == [b"app.py", b"sub/a.key"]
    make(tmp_path, {".cfignore": "", "other/.gitignore": "*.py\n", "other/b.py": ""})
    assert kept(tmp_path) == [b".env", b"app.py", b"other/b.py", b"sub/a.key"]
