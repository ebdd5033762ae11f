"""Checks whether base_dir can be written, by writing to it. No other check finds a full, a broken and a read-only file system."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from agent.logs import Log

#: A disk that takes longer counts as not writable.
PATIENCE_S: Final = 5.0
_BLOCK: Final = bytes(4096)


def write(directory: Path) -> None:
    """Write a block, rename the file, remove it: what every start needs. OSError: one of them failed. Blocks."""
    new, path = directory / ".probe.new", directory / ".probe"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:
        file.write(_BLOCK)
    new.rename(path)
    path.unlink()


class WriteProbe:
    """``is_writable``: the result of the last `look`."""

    def __init__(self, directory: Path, log: Log) -> None:
        self._directory = directory
        self._log = log
        self._trying: asyncio.Task[None] | None = None
        self.is_writable = True

    async def look(self) -> None:
        """Try a write in a thread, and set ``is_writable``. A try that has not returned is waited for again, instead of a new
        one, so at most one thread hangs on a disk that does not respond."""
        if self._trying is None:
            self._trying = asyncio.create_task(asyncio.to_thread(write, self._directory), name="probe")
        done, _ = await asyncio.wait({self._trying}, timeout=PATIENCE_S)
        if not done:
            self._note(f"the disk has not responded for {PATIENCE_S:g} s")
            return
        tried, self._trying = self._trying, None
        error = tried.exception()
        if error is not None and not isinstance(error, OSError):
            raise error
        self._note(None if error is None else error.strerror or str(error))

    def _note(self, why_not: str | None) -> None:
        was, self.is_writable = self.is_writable, why_not is None
        if was and why_not is not None:
            self._log.error(
                "base_dir_not_writable",
                base_dir=str(self._directory),
                error=why_not,
                consequence="new starts and stagings are refused; running apps continue",
            )
        elif not was and why_not is None:
            self._log.info("base_dir_writable_again", base_dir=str(self._directory))
