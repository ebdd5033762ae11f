"""Which files of a directory are not part of an app: the language of gitignore(5), in `.cfignore` files.

Every directory may have its own file. Its patterns apply to that directory and below, and have precedence over those of the
directories above. In a file the last matching pattern decides. A pattern with `!` includes a path again, but not below a
directory that is left out. When the pushed directory has no `.cfignore` at its top, a directory without a `.cfignore` is read
by its `.gitignore`.

Git compares names as bytes: two `?` match one `é`. Names and patterns are therefore decoded as Latin-1, one character for
each byte. pathspec translates the patterns into regular expressions. This module decides which pattern counts. Like git, it
tests each path from the top directory down, so that `*` followed by `!*/` has the same result as in git.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

CFIGNORE, GITIGNORE = ".cfignore", ".gitignore"
#: The history of git, which no pattern can include again.
NEVER = frozenset({".git"})
#: First what `cf push` leaves out by default, then files that work only on the machine that made them.
DEFAULTS = (
    ".cfignore", ".DS_Store", ".git", ".gitignore", ".hg", ".svn", "_darcs", "manifest.yml",
    "__pycache__/", ".venv", "*.pyc",
)  # fmt: skip
_BOM = "\xef\xbb\xbf"
#: Character classes as ranges of ASCII characters inside brackets (wildmatch.c of git uses no locale either).
CLASSES = {
    "alnum": "a-zA-Z0-9", "alpha": "a-zA-Z", "blank": " \t", "cntrl": "\0-\x1f\x7f", "digit": "0-9",
    "graph": '"-~!', "lower": "a-z", "print": " -~", "punct": ":-@!-/[-`{-~", "space": " \t-\r", "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line of an ignore file. ``only_directories``: the line ends with a slash."""

    regex: re.Pattern[str]
    leaves_out: bool
    only_directories: bool

    def fits(self, path: str, *, is_directory: bool) -> bool:
        """True if it matches ``path`` itself. A match of a directory above is tested with that directory."""
        if self.only_directories:
            whole = f"{path}/"
            return is_directory and any(m.end() == len(whole) for m in self.regex.finditer(whole))
        found = self.regex.search(path)
        return found is not None and found.groupdict().get("ps_d") is None


def parse(text: str) -> tuple[Pattern, ...]:
    """The patterns of an ignore file. A line that git does not read as a pattern is dropped."""
    patterns = []
    for line in text.removeprefix(_BOM).split("\n"):
        pattern = _parse_line(line.removesuffix("\r"))
        if pattern is not None:
            patterns.append(pattern)
    return tuple(patterns)


def _parse_line(line: str) -> Pattern | None:
    line = _without_trailing_spaces(line)
    if line != line.rstrip():
        # pathspec strips what git keeps: other white space, and a space after a backslash
        line = line[:-1].removesuffix("\\") + f"[{line[-1]}]"
    only_directories = line.endswith("/")
    line = re.sub(r"\[:(\w+):\]", lambda match: CLASSES.get(match[1], match[0]), line)
    if line.endswith("/**/"):  # matches the directories below, not the directory itself
        line += "*/"
    # git compares the literal beginning separately, and reads a `**` after it like one at the start of the line
    line = re.sub(r"^(!?(?!!)[^*?[\\]*[^*?[\\/])\*\*/", r"\1*/**/", line)
    try:
        translated = GitIgnoreSpecPattern(_with_ranges_forward(line))
    except (ValueError, re.error):
        return None
    if translated.include is None or translated.regex is None:
        return None
    return Pattern(translated.regex, translated.include, only_directories)


def _with_ranges_forward(line: str) -> str:
    """Git reads `[b-a]` as `[b]`; in a regular expression it is an error."""

    def forward(bracket: re.Match[str]) -> str:
        return re.sub(
            r"(.)-([^]])",
            lambda ends: ends[0] if ends[1] <= ends[2] else ends[1],
            bracket[0],
            flags=re.DOTALL,
        )

    return re.sub(r"\[[^]]+\]", forward, line)


def _without_trailing_spaces(line: str) -> str:
    end = len(line)
    while end and line[end - 1] == " " and not line[: end - 1].endswith("\\"):
        end -= 1
    return line[:end]


def is_left_out(path: str, *, is_directory: bool, levels: Iterable[tuple[str, tuple[Pattern, ...]]]) -> bool:
    """Whether the patterns exclude ``path``, which is relative; no directory above it may be left out.

    ``levels``: for each directory above it that has patterns, its path and the patterns, the top first. The path of the top is
    ``""``, others end with a slash.
    """
    if path.rpartition("/")[2] in NEVER:
        return True
    for folder, patterns in reversed(tuple(levels)):
        below = path.removeprefix(folder)
        for pattern in reversed(patterns):
            if pattern.fits(below, is_directory=is_directory):
                return pattern.leaves_out
    return False


class Ignores:
    """The ignore files of one directory tree, each read when the walk enters its directory. OSError: one cannot be read."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._only_cfignore = (top / CFIGNORE).is_file()
        self._levels: list[tuple[str, tuple[Pattern, ...]]] = [("", parse("\n".join(DEFAULTS)))]
        self.read: set[str] = set()
        """Which kinds of file were found: `.cfignore`, `.gitignore`."""

    def enter(self, folder: str) -> None:
        """The walk enters a directory (relative to the top; ``""`` is the top). To be called before its entries."""
        lead = f"{_as_latin_1(folder)}/" if folder else ""
        for name in (CFIGNORE,) if self._only_cfignore else (CFIGNORE, GITIGNORE):
            file = self._top / folder / name
            if file.is_file():
                self._levels.append((lead, parse(file.read_bytes().decode("latin-1"))))
                self.read.add(name)
                return

    def leave_out(self, path: str, *, is_directory: bool) -> bool:
        path = _as_latin_1(path)
        while not path.startswith(self._levels[-1][0]):  # the walk has left that directory
            self._levels.pop()
        return is_left_out(path, is_directory=is_directory, levels=self._levels)


def _as_latin_1(name: str) -> str:
    return os.fsencode(name).decode("latin-1")
