"""Copies sparse files: only the data is copied, and holes stay holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_COPY_CHUNK_BYTES: Final = 4 << 20


def copy_sparse(source: Path, target: Path) -> None:
    """Copies ``source`` to ``target``, which must not exist. They may be on different file systems.

    OSError: the copy failed, and ``target`` is removed.
    """
    with source.open("rb", buffering=0) as src, target.open("xb", buffering=0) as dst:
        try:
            os.truncate(dst.fileno(), os.fstat(src.fileno()).st_size)
            for start, end in _extents(src.fileno()):
                at = start
                while at < end:
                    data = os.pread(src.fileno(), min(end - at, _COPY_CHUNK_BYTES), at)
                    if not data:
                        raise OSError(errno.EIO, "the file became shorter while it was copied", str(source))
                    at += os.pwrite(dst.fileno(), data, at)
        except BaseException:
            target.unlink()
            raise


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each range that holds data."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # there is only a hole from here on
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
