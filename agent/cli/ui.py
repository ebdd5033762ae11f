"""How things look: results on stdout, everything else on stderr; colour and movement only for a terminal.

A terminal may be narrow, or know no UTF-8: text is measured in columns, and signs that it lacks have a plain form.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TextIO

import click

MOVE_PERIOD_S = 0.05
TEXT_COLUMNS = 78
# What our own signs become where they cannot be shown; whatever else is shown as an escape.
PLAIN = {"✓": "*", "…": "...", "–": "-"}
_PAINT = re.compile(r"\033\[\d*m")
DONE, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130


class Failure(click.ClickException):
    """What failed, why, and what to do next; `status` is the exit status, `output` the last lines of what failed."""

    def __init__(
        self, what: str, why: str = "", hint: str = "", status: int = FAILED, output: Sequence[str] = ()
    ) -> None:
        super().__init__(what)
        self.what, self.why, self.hint = what, why, hint
        self.status, self.output = status, tuple(output)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "error": self.what, "why": self.why, "hint": self.hint, "status": self.status,
            "output": list(self.output),
        }  # fmt: skip

    def show(self, file: Any = None) -> None:
        stream = file or sys.stderr
        lead = paint("error: ", "red", stream)
        print(f"{lead}{harmless(self.what)}{': ' + harmless(self.why) if self.why else ''}", file=stream)
        if self.hint:
            print(f"       {harmless(self.hint)}", file=stream)


def harmless(text: str) -> str:
    """What others wrote (a buildpack, tar, a file's name) for a terminal, which no control sequence in it may reach."""
    return "".join(
        f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def colourful(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def lively(stream: TextIO) -> bool:
    """May a line be rewritten?"""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


CODES = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36, "dim": 2, "bold": 1}


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    if not colourful(stream or sys.stdout):
        return text
    return f"\033[{CODES[colour]}m{text}\033[0m"


def tell(text: str = "") -> None:
    """A word beside the result."""
    print(text, file=sys.stderr, flush=True)


def emit_json(document: Any) -> None:
    print(
        json.dumps(document, separators=(",", ":"))
        if not sys.stdout.isatty()
        else json.dumps(document, indent=2)
    )


def speak_plainly() -> None:
    """No text makes an output fail: not a name that is no UTF-8, not a sign that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="garrison")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    if 0xDC80 <= ord(error.object[error.start]) <= 0xDCFF:  # a byte of a name that is no UTF-8
        return f"\\x{ord(error.object[error.start]) - 0xDC00:02x}", error.start + 1
    if error.object[error.start] in PLAIN:
        return PLAIN[error.object[error.start]], error.start + 1
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return codecs.backslashreplace_errors(one)


codecs.register_error("garrison", _plain)


def columns(text: str) -> int:
    """How wide it is: colour has no width, some letters have two columns, accents of their own none."""
    return sum(_columns_of(char) for char in _PAINT.sub("", text))


def _columns_of(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, width: int, mark: str = "…") -> str:
    """Its beginning, at most `width` columns; no colour is cut in two or left on."""
    if columns(text) <= width:
        return text
    kept, left, painted = [], width - columns(mark), False
    for piece in re.split(f"({_PAINT.pattern})", text):
        if _PAINT.fullmatch(piece):
            kept.append(piece)
            painted = piece != "\033[0m"
            continue
        for char in piece:
            left -= _columns_of(char)
            if left < 0:
                return "".join(kept) + mark + ("\033[0m" if painted else "")
            kept.append(char)
    return "".join(kept)


def shortened(path: str, width: int = 32) -> str:
    """The end of a long path, which says more than its beginning."""
    if columns(path) <= width:
        return path
    while columns(path) >= width:
        path = path[1:]
    return f"…{path}"


def as_shown(text: str, stream: TextIO) -> str:
    """What the stream's encoding makes of it."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "garrison").decode(encoding)


def terminal_columns(stream: TextIO) -> int | None:
    """None: no terminal, so that nothing has to fit. A terminal that tells none has 80."""
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


class MovingLine:
    """The one line of progress: rewritten on a terminal; a pipe gets only the finished one."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lively = lively(self._stream)
        self._shown = False
        self._next_at = 0.0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if not self._lively or now < self._next_at:
            return
        self._next_at = now + MOVE_PERIOD_S
        width = (terminal_columns(self._stream) or 80) - 1
        line = cut(as_shown(text, self._stream), width, as_shown("…", self._stream))
        self._stream.write(f"\r\033[K{line}")
        self._stream.flush()
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._shown = False

    def finish(self, text: str) -> None:
        self.clear()
        print(text, file=self._stream, flush=True)


def with_time(text: str, seconds: float) -> str:
    """For stderr: the time stands at the right, or close behind the text where there is no room to spare."""
    told = f"{seconds:.1f} s"
    width = min(terminal_columns(sys.stderr) or TEXT_COLUMNS, TEXT_COLUMNS) - columns(told) - 1
    return f"{text}{' ' * max(1, width - columns(text))}{paint(told, 'dim', sys.stderr)}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns side by side; on a terminal too narrow for them, one under the other."""
    lines = [list(head), *map(list, rows)]
    widths = [max(columns(line[column]) for line in lines) for column in range(len(head))]
    room = terminal_columns(sys.stdout)
    if room is not None and sum(widths) + 3 * (len(widths) - 1) > room:
        _stacked(lines)
        return
    for number, line in enumerate(lines):
        cells = (cell + " " * (width - columns(cell)) for cell, width in zip(line, widths, strict=True))
        text = "   ".join(cells).rstrip()
        print(paint(text, "bold") if number == 0 else text)


def _stacked(lines: Sequence[Sequence[str]]) -> None:
    head, *rows = lines
    lead = max(map(columns, head)) + 2
    for row in rows:
        print(paint(row[0], "bold"))
        for name, cell in zip(head[1:], row[1:], strict=True):
            print(f"  {name:<{lead}}{cell}")


def size(count_bytes: float) -> str:
    value = float(count_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if value >= 10 or unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def parse_size_mb(text: str) -> int:
    """`64M`, `1G`, `512` (MiB)."""
    digits = text.strip().upper().removesuffix("IB").removesuffix("B")
    factor = {"M": 1, "G": 1024}.get(digits[-1:], 0)
    number = digits[:-1] if factor else digits
    if not number.isdigit() or int(number) == 0:
        raise click.BadParameter(f"expected a size like 64M or 1G, got {text!r}")
    return int(number) * (factor or 1)


class Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_size_mb(value)


def confirm(question: str, yes: bool) -> None:
    """On a terminal asks; without one `--yes` must say it."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure(f"not done: {question}", "there is no terminal to ask on", "say --yes", USAGE)
    if not click.confirm(f"{question}. Go on?", err=True):
        raise Failure("nothing was done")


def count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def stop(status: int) -> NoReturn:
    raise click.exceptions.Exit(status)


def nearest(name: str, names: Iterable[str]) -> str | None:
    import difflib

    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return close[0] if close else None
