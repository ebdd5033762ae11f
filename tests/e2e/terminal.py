"""Runs a garrison command on a terminal: reads what a user sees, and sends keys."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

WITHIN_S = 60.0


class Terminal:
    """One command; `see` waits for words, `end` for its exit status."""

    def __init__(
        self, *words: str | Path, env: Mapping[str, str] | None = None, columns: int | None = None
    ) -> None:
        self._master, slave = pty.openpty()
        if columns is not None:
            termios.tcsetwinsize(slave, (24, columns))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **(env or {})},
        )
        os.close(slave)
        self.text = ""

    def see(self, words: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while words not in self.text:
            more = time.monotonic() < deadline and self._read()
            assert more, f"never saw {words!r}:\n{self.text}"

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def press_ctrl_c(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        while self._read():
            pass
        os.close(self._master)
        return self._process.wait(WITHIN_S)

    def _read(self) -> bool:
        """Reads once. False: the end of the output."""
        if not select.select([self._master], [], [], WITHIN_S)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # EIO: the other end is closed
            return False
        self.text += data.decode(errors="replace")
        return bool(data)
