"""Runs the agent with a depot in memory, without root: `memory_agent.py run --config FILE`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depot_in_memory import in_memory

from agent.cli.config import load_or_fail
from agent.logs import LogFile, configure
from agent.signals import hold
from agent.worker import Worker

if __name__ == "__main__":
    hold()
    _, _, _, config = sys.argv
    settings = load_or_fail(Path(config), doubts="print")
    assert settings.logging.file is not None
    log_file = LogFile(settings.logging.file)
    worker = Worker(settings, configure(settings.logging, log_file), log_file, in_memory("127.0.0.1"))
    sys.exit(asyncio.run(worker.run()))
