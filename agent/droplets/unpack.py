"""The worker: `python -I -m agent.droplets.unpack FORMAT TARGET BOUNDS`, with the archive on standard input.

It prints one line of JSON on standard output: {"files", "bytes"} or {"error"}. Everything that it needs is loaded before it enters
the jail; after that it has no file system but the target.

Processor time is limited by the number of bytes read, since half a megabyte of headers can be made to cost a minute. A timer
compares the two, whatever the reader is doing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from agent.droplets import jail
from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.tar import TarReader
from agent.droplets.writer import ArchiveReader, write_tree
from agent.droplets.zip import ZipReader

#: How often the timer looks, in seconds of processor time.
LOOK_S = 0.25


class Meter:
    """Counts the bytes read and compares them with the processor time used. The timer starts here, because the jail permits no call
    for one."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._is_on = False
        self.bytes_in = os.fstat(0).st_size  # 0 of a pipe, which is counted as it is read
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, LOOK_S, LOOK_S)

    def read(self, limit: int) -> bytes:
        data = os.read(0, limit)
        self.bytes_in += len(data)
        return data

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Within the block, ArchiveError is raised as soon as the processor time exceeds what the bytes read so far permit."""
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    def _look(self, *_: object) -> None:
        allowed_s = self._bounds.cpu_s(self.bytes_in)
        if self._is_on and time.process_time() > allowed_s:
            self._is_on = False  # once: what is raised must come through
            raise ArchiveError(f"{self.bytes_in} bytes cost more than {allowed_s:.1f} s of processor time")


def _say(**words: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # the agent has been killed: nobody wants to know
        os.write(1, json.dumps(words).encode() + b"\n")


def main() -> int:
    kind, target, bounds_text = sys.argv[1:4]
    bounds = Bounds(**json.loads(bounds_text))
    if kind == "zip":
        _warm_up()
    meter = Meter(bounds)
    try:
        root = jail.enter(Path(target))
    except OSError as e:
        _say(error=f"the jail cannot be made: {e}", jail=True)
        return 2
    try:
        with meter.on():
            stdin = sys.stdin.buffer
            reader: ArchiveReader = (
                ZipReader(stdin, bounds) if kind == "zip" else TarReader(meter.read, bounds)
            )
            writer = write_tree(reader, root, bounds)
    except ArchiveError as e:
        _say(error=str(e))
        return 1
    except MemoryError:
        _say(error="the archive needs more memory than it may have")
        return 1
    _say(files=writer.files, bytes=writer.size_bytes)
    return 0


def _warm_up() -> None:
    """Loads the codecs by name: their files cannot be reached later."""
    b"".decode("cp437")
    "".encode("cp437")


if __name__ == "__main__":
    # no clean-up of the interpreter: it would look for files that are out of reach
    os._exit(main())
