"""The worker: `python -I -m agent.droplets.unpack FORMAT TARGET BOUNDS`, the archive on standard input.

Says one line of JSON on standard output: {"files", "bytes"} or {"error"}. Everything that it needs is loaded before it is shut
in; from then on there is no file system but the target.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from agent.droplets import jail
from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.tar import TarReader
from agent.droplets.writer import Reader, write_tree
from agent.droplets.zip import ZipReader


def _say(**words: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # the agent has been killed: nobody wants to know
        os.write(1, json.dumps(words).encode() + b"\n")


def main() -> int:
    kind, target, bounds_text = sys.argv[1:4]
    bounds = Bounds(**json.loads(bounds_text))
    if kind == "zip":
        _warm_up()
    try:
        root = jail.enter(Path(target))
    except OSError as e:
        _say(error=f"the jail cannot be made: {e}", jail=True)
        return 2
    try:
        reader: Reader = ZipReader(sys.stdin.buffer, bounds) if kind == "zip" else TarReader(_read, bounds)
        writer = write_tree(reader, root, bounds)
    except ArchiveError as e:
        _say(error=str(e))
        return 1
    except MemoryError:
        _say(error="the archive needs more memory than it may have")
        return 1
    _say(files=writer.files, bytes=writer.size_bytes)
    return 0


def _read(limit: int) -> bytes:
    return os.read(0, limit)


def _warm_up() -> None:
    """Codecs are loaded by name, from files that are out of reach later."""
    b"".decode("cp437")
    "".encode("cp437")


if __name__ == "__main__":
    # no clean-up of the interpreter: it would look for files that are out of reach
    os._exit(main())
