"""The files of a job in the spool: made for it, read from any offset, found again after a restart.

wshd appends to the files and frees bytes at their heads (as holes) while they are read (docs/wshd.md, "Output").
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from container import linux

_CHUNK_BYTES: Final = 256 << 10
_RECORD_BYTES: Final = 4096
STREAMS: Final = {"stdout": ".out", "stderr": ".err"}
RECORD: Final = ".record"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Output of ``stream`` from ``offset`` on. ``gap_bytes``: how many bytes directly before it were dropped."""

    stream: str
    offset: int
    data: bytes
    gap_bytes: int = 0


class SpoolFiles:
    """Makes the files of one job. The descriptors are sent to wshd and then closed."""

    def __init__(self, spool: Path, job_id: str) -> None:
        self.fds: dict[str, int] = {}
        # The record comes first: recovery finds jobs by their records, so it also finds one whose files are half made.
        self._paths = [spool / (job_id + suffix) for suffix in (RECORD, *STREAMS.values())]
        try:
            for name, path in zip(("record", *STREAMS), self._paths, strict=True):
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self.fds[name] = os.open(path, flags, 0o600)
            linux.preallocate(self.fds["record"], _RECORD_BYTES)
        except BaseException:
            self.close()
            self.remove()
            raise

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.popitem()[1])

    def remove(self) -> None:
        for path in reversed(self._paths):
            path.unlink(missing_ok=True)


class SpoolReader:
    """Reads one spool file, of which wshd may drop bytes at the head meanwhile (docs/wshd.md, "Output")."""

    def __init__(self, opened: ExitStack, path: Path, stream: str, offset: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, self._fd)
        self._stream = stream
        self._at = offset

    def read(self) -> Chunk | None:
        """The next chunk; None: there is nothing beyond the offset."""
        while True:
            end = os.fstat(self._fd).st_size
            if self._at >= end:
                return None
            start = self._seek_data(self._at, end)
            data = os.pread(self._fd, min(_CHUNK_BYTES, end - start), start) if start < end else b""
            if self._seek_data(start, end) != start:
                continue  # a hole was punched during the read, so what was read may be zeros
            gap, self._at = start - self._at, start + len(data)
            return Chunk(self._stream, start, data, gap)

    def _seek_data(self, at: int, end: int) -> int:
        try:
            return min(os.lseek(self._fd, at, os.SEEK_DATA), end)
        except OSError as e:
            if e.errno != 6:  # ENXIO: a hole up to the end
                raise
            return end


def found_jobs(spool: Path) -> list[str]:
    """The ids of the jobs that have a record in a spool."""
    return sorted(path.name.removesuffix(RECORD) for path in spool.iterdir() if path.name.endswith(RECORD))
