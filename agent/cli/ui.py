"""How things look: results on stdout, everything else on stderr; colour and movement only for a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TextIO

import click

MOVE_PERIOD_S = 0.05
DONE, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130


class Failure(click.ClickException):
    """What failed, why, and what to do next; `status` is the exit status."""

    def __init__(self, what: str, why: str = "", hint: str = "", status: int = FAILED) -> None:
        super().__init__(what)
        self.what, self.why, self.hint = what, why, hint
        self.status = status

    def show(self, file: Any = None) -> None:
        stream = file or sys.stderr
        lead = paint("error: ", "red", stream)
        print(f"{lead}{self.what}{': ' + self.why if self.why else ''}", file=stream)
        if self.hint:
            print(f"       {self.hint}", file=stream)


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
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\033[K{text[:width]}")
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


def with_time(text: str, seconds: float, width: int = 74) -> str:
    return f"{text:<{width - 1}} {paint(f'{seconds:.1f} s', 'dim', sys.stderr)}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for number, line in enumerate(lines):
        text = "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        print(paint(text, "bold") if number == 0 else text)


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
