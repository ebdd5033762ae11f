"""Output: results on stdout, everything else on stderr. Colour and the progress line are for terminals only.

A terminal may be narrow, or may not use UTF-8. Text is therefore measured in columns, and our own symbols have an ASCII form.
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
# The ASCII form of our own symbols, for streams that cannot encode them. Other characters are escaped.
PLAIN = {"✓": "*", "…": "...", "–": "-"}
_PAINT = re.compile(r"\033\[\d*m")
DONE, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130


class Failure(click.ClickException):
    """What failed, why, and a hint what to do. ``status`` is the exit status, ``output`` the last lines of what failed."""

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
    """Text from outside (a buildpack's output, a file's name) with its control characters escaped, for a terminal."""
    return "".join(
        f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def colourful(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def lively(stream: TextIO) -> bool:
    """True if a line can be rewritten."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


CODES = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36, "dim": 2, "bold": 1}


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    if not colourful(stream or sys.stdout):
        return text
    return f"\033[{CODES[colour]}m{text}\033[0m"


def report(text: str = "") -> None:
    """Prints a line on stderr, beside the result on stdout."""
    print(text, file=sys.stderr, flush=True)


def emit_json(document: Any) -> None:
    print(
        json.dumps(document, separators=(",", ":"))
        if not sys.stdout.isatty()
        else json.dumps(document, indent=2)
    )


def escape_unencodable() -> None:
    """From now on print() never fails: file names that are not UTF-8 and symbols that the encoding lacks are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="garrison")


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    if 0xDC80 <= ord(error.object[error.start]) <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{ord(error.object[error.start]) - 0xDC00:02x}", error.start + 1
    if error.object[error.start] in PLAIN:
        return PLAIN[error.object[error.start]], error.start + 1
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return codecs.backslashreplace_errors(one)


codecs.register_error("garrison", _escaped)


def columns(text: str) -> int:
    """The width of the text. Colour codes and combining accents have none, wide letters have two columns."""
    return sum(_columns_of(char) for char in _PAINT.sub("", text))


def _columns_of(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, width: int, mark: str = "…") -> str:
    """The beginning of the text, at most ``width`` columns. Colour codes stay whole, and a colour is switched off again."""
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
    """The end of a long path, which is more useful than its beginning."""
    if columns(path) <= width:
        return path
    while columns(path) >= width:
        path = path[1:]
    return f"…{path}"


def as_shown(text: str, stream: TextIO) -> str:
    """The text with everything escaped that the stream cannot encode."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "garrison").decode(encoding)


def terminal_columns(stream: TextIO) -> int | None:
    """The width of the terminal, 80 if it reports none. None: the stream is not a terminal."""
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


class MovingLine:
    """The progress line. A terminal gets it rewritten in place; a pipe gets only the finished line."""

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
    """For stderr: the text with the time at the right margin, or directly after it on a narrow terminal."""
    time_text = f"{seconds:.1f} s"
    width = min(terminal_columns(sys.stderr) or TEXT_COLUMNS, TEXT_COLUMNS) - columns(time_text) - 1
    return f"{text}{' ' * max(1, width - columns(text))}{paint(time_text, 'dim', sys.stderr)}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table. On a terminal that is too narrow, the cells of a row are printed one below the other."""
    lines = [list(head), *map(list, rows)]
    widths = [max(columns(line[column]) for line in lines) for column in range(len(head))]
    available = terminal_columns(sys.stdout)
    if available is not None and sum(widths) + 3 * (len(widths) - 1) > available:
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
    """Parses `64M`, `1G` or `512` (MiB)."""
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
    """Asks the user, unless ``yes``. Failure: the user declined, or there is no terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure(f"not done: {question}", "there is no terminal to ask on", "confirm with --yes", USAGE)
    if not click.confirm(f"{question}. Continue?", err=True):
        raise Failure("nothing was done")


def count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def stop(status: int) -> NoReturn:
    raise click.exceptions.Exit(status)


def nearest(name: str, names: Iterable[str]) -> str | None:
    import difflib

    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return close[0] if close else None
