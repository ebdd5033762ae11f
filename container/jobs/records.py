"""How a job ended: the values, and the parser of wshd's record (PROTOCOL.md, "3. Files that the manager owns"). Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a job ended: with a code, by a signal, at the output limit (``overran``), or unknown (``lost``)."""

    code: int | None = None
    signal: int | None = None
    overran: bool = False
    lost: bool = False

    @property
    def number(self) -> int:
        """The end as one number, as clients of Warden expect it: the code, 255 for a signal or an overrun, -1 if lost."""
        if self.lost:
            return -1
        return 255 if self.code is None else self.code

    @property
    def ok(self) -> bool:
        """True if it ended by itself with code 0."""
        return self.code == 0


LOST: Final = ExitStatus(lost=True)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The content of a record file so far."""

    status: ExitStatus | None = None
    ended: bool = False
    lost_bytes: dict[str, int] = field(default_factory=dict)


def parse_status(kind: str, number: int) -> ExitStatus:
    match kind:
        case "exit":
            return ExitStatus(code=number)
        case "signal":
            return ExitStatus(signal=number)
        case "overran":
            return ExitStatus(signal=9, overran=True)
    return LOST


def parse_record(data: bytes) -> JobRecord:
    """Parses the lines that wshd has written. An unfinished last line and unknown lines are ignored."""
    status, ended, lost = None, False, {}
    for line in data.split(b"\n")[:-1]:
        match line.decode(errors="replace").split(" "):
            case ["exit" | "signal" as kind, number] if number.isdigit() and status is None:
                status = parse_status(kind, int(number))
            case ["overran"] if status is None:
                status = parse_status("overran", 0)
            case ["lost", stream, count] if count.isdigit():
                lost[stream] = int(count)
            case ["end"]:
                ended = True
    return JobRecord(status, ended, lost)
