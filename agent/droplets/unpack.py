"""The unpacking worker: `python -I -m agent.droplets.unpack FORMAT TARGET BOUNDS`, with the archive on standard input.

It writes one line of JSON to standard output: {"files", "bytes"}, or {"error"} with "jail" if the jail failed. All modules and
codecs must be loaded before the process enters the jail, because afterwards the target is its only file system.

Processor time is limited in proportion to the bytes that were read, since half a megabyte of hostile headers can cost a minute.
A timer signal checks this, so that no loop of a reader can escape the limit.
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

#: The period of the timer, in seconds of processor time.
LOOK_S = 0.25


class Meter:
    """Counts the bytes read and limits the processor time. It must be made before the jail, which permits no timer calls."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._is_on = False
        self.bytes_in = os.fstat(
            0
        ).st_size  # a zip's file counts at once; of a pipe this is 0, and `read` counts
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, LOOK_S, LOOK_S)

    def read(self, limit: int) -> bytes:
        data = os.read(0, limit)
        self.bytes_in += len(data)
        return data

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Within the block, ArchiveError is raised at any point once the archive has used more processor time than its bytes allow."""
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    def _look(self, *_: object) -> None:
        allowed_s = self._bounds.cpu_s(self.bytes_in)
        if self._is_on and time.process_time() > allowed_s:
            self._is_on = False  # raise only once, so that the clean-up is not interrupted
            raise ArchiveError(f"{self.bytes_in} bytes took more than {allowed_s:.1f} s of processor time")


def _say(**words: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # the agent has been killed
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
        _say(error=f"the jail of the unpacking worker cannot be set up: {e}", jail=True)
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
        _say(error=f"unpacking needs more than {jail.MEMORY_BYTES >> 20} MiB of memory")
        return 1
    _say(files=writer.files, bytes=writer.size_bytes)
    return 0


def _warm_up() -> None:
    """Loads the codec of zip names, whose file cannot be reached from the jail."""
    b"".decode("cp437")
    "".encode("cp437")


if __name__ == "__main__":
    # skip the interpreter's clean-up, which would look for files outside the jail
    os._exit(main())
