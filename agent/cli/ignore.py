"""Which files of a directory are not part of an app: the language of gitignore(5), in `.cfignore` files.

Every directory may have a file of its own, whose patterns hold for it and below, and win over those of the directories above.
A file's last pattern that fits decides, `!` takes back in, and nothing is taken back in from a directory that is left out.
Where the pushed directory has no `.cfignore` at its top, `.gitignore` files stand in for them.

To git a name is bytes, so that `?` is half of an `é`: text is decoded as Latin-1 here, one character for each byte.
pathspec translates the patterns. Which of them decides is settled here, a path at a time from the top: that is how git
walks, and it makes `*` with `!*/` come out as it does there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

CFIGNORE, GITIGNORE = ".cfignore", ".gitignore"
#: History, which no pattern takes back in.
NEVER = frozenset({".git"})
#: What `cf push` leaves out by default, then what only works where it was made.
DEFAULTS = (
    ".cfignore", ".DS_Store", ".git", ".gitignore", ".hg", ".svn", "_darcs", "manifest.yml",
    "__pycache__/", ".venv", "*.pyc",
)  # fmt: skip
_BOM = "\xef\xbb\xbf"
#: Classes of characters in ASCII, as ranges that may stand in brackets (wildmatch.c of git knows no locale either).
CLASSES = {
    "alnum": "a-zA-Z0-9", "alpha": "a-zA-Z", "blank": " \t", "cntrl": "\0-\x1f\x7f", "digit": "0-9",
    "graph": '"-~!', "lower": "a-z", "print": " -~", "punct": ":-@!-/[-`{-~", "space": " \t-\r", "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line. ``only_directories``: it ends with a slash."""

    regex: re.Pattern[str]
    leaves_out: bool
    only_directories: bool

    def fits(self, path: str, *, is_directory: bool) -> bool:
        """Does it name `path` itself? That it names a directory above is that directory's own affair."""
        if self.only_directories:
            whole = f"{path}/"
            return is_directory and any(m.end() == len(whole) for m in self.regex.finditer(whole))
        found = self.regex.search(path)
        return found is not None and found.groupdict().get("ps_d") is None


def parse(text: str) -> tuple[Pattern, ...]:
    """The lines of an ignore file. What git takes for no pattern is none here."""
    patterns = []
    for line in text.removeprefix(_BOM).split("\n"):
        pattern = _parse_line(line.removesuffix("\r"))
        if pattern is not None:
            patterns.append(pattern)
    return tuple(patterns)


def _parse_line(line: str) -> Pattern | None:
    line = _without_trailing_spaces(line)
    if (
        line != line.rstrip()
    ):  # pathspec would strip what git keeps: other blanks, and spaces behind a backslash
        line = line[:-1].removesuffix("\\") + f"[{line[-1]}]"
    only_directories = line.endswith("/")
    line = re.sub(r"\[:(\w+):\]", lambda match: CLASSES.get(match[1], match[0]), line)
    if line.endswith("/**/"):  # directories below, not the directory itself
        line += "*/"
    # git compares a plain beginning by itself, and takes `**` behind it for one at the beginning
    line = re.sub(r"^(!?(?!!)[^*?[\\]*[^*?[\\/])\*\*/", r"\1*/**/", line)
    try:
        translated = GitIgnoreSpecPattern(_with_ranges_forward(line))
    except (ValueError, re.error):
        return None
    if translated.include is None or translated.regex is None:
        return None
    return Pattern(translated.regex, translated.include, only_directories)


def _with_ranges_forward(line: str) -> str:
    """`[b-a]` is `[b]` to git, and an error to a regular expression."""

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
    """`path` is relative, with slashes; no directory above it is left out. ``levels``: each directory above it that has
    patterns (``""`` for the top, else with a slash at its end) with these, the top first.
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
    """The ignore files of one directory tree, read as the walk comes to their directories. OSError: one cannot be read."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._only_cfignore = (top / CFIGNORE).is_file()
        self._levels: list[tuple[str, tuple[Pattern, ...]]] = [("", parse("\n".join(DEFAULTS)))]
        self.read: set[str] = set()
        """The names of the files that were found: `.cfignore`, `.gitignore`."""

    def enter(self, folder: str) -> None:
        """A directory, relative to the top (``""`` for it), before its entries."""
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
