"""One run of the agent's process: its log, its signals, its end."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class AgentProcess:
    """``log_path`` has the logs of all runs; only the lines of this run are read."""

    def __init__(self, process: asyncio.subprocess.Process, log_path: Path) -> None:
        self._process = process
        self._log_path = log_path
        self._log_from = log_path.stat().st_size if log_path.exists() else 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    def log(self, event: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """The lines of this run's log, or those of one event with these fields."""
        if not self._log_path.exists():
            return []
        with self._log_path.open("rb") as file:
            file.seek(self._log_from)
            lines = [json.loads(line) for line in file if line.endswith(b"\n")]
        return [
            line
            for line in lines
            if (event is None or line["event"] == event)
            and all(line.get(key) == value for key, value in fields.items())
        ]

    async def wait_log(self, event: str, *, within_s: float = 20.0, **fields: Any) -> dict[str, Any]:
        """Waits for the first line of an event with these fields."""
        await poll(lambda: self.log(event, **fields), within_s)
        found = self.log(event, **fields)
        assert found, f"no {event} {fields} within {within_s} s:\n{self.log_text()}"
        return found[0]

    def log_text(self, lines: int = 40) -> str:
        return "\n".join(json.dumps(line) for line in self.log()[-lines:])

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def wait_exited(self, within_s: float = 40.0) -> int:
        """Waits for the end. Returns the exit status. An agent that does not end is killed, and the test fails."""
        try:
            async with asyncio.timeout(within_s):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise AssertionError(f"the agent did not end within {within_s} s:\n{self.log_text()}") from None


async def poll(look: Callable[[], Any], within_s: float) -> Any:
    """Calls ``look`` every 20 ms until its result is true. Returns the last result."""
    deadline = time.monotonic() + within_s
    while not (found := look()) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)  # files and processes of others tell nobody when they change
    return found
