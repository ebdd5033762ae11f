"""`garrison warden` as a process: one server after the other, on one depot."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import testhost
from warden_client import Client

_START_S = 30.0


class WardenProcess:
    """``rest``: further keys of ``server``, and further sections, of its configuration file in ``base``."""

    def __init__(self, base: Path, rootfs: Path, *, server: str = "", rest: str = "") -> None:
        self.socket, self.log, self.depot = base / "w.sock", base / "w.log", base / "warden"
        testhost.own_depots.add(self.depot)
        self.config = base / "warden.yml"
        self.config.write_text(
            f"server: {{container_rootfs_path: {rootfs}, container_depot_path: {self.depot},\n"
            f"  unix_domain_path: {self.socket}, quota: {{disk_quota_enabled: false}}, cgroup_links_path: null,\n"
            f"  {server}}}\n"
            f"logging: {{level: debug2, file: {self.log}}}\n{rest}"
        )
        self.running: asyncio.subprocess.Process | None = None

    async def spawn(self, config: Path | None = None, **environment: str) -> asyncio.subprocess.Process:
        """With another file of configuration, if one is given; its errors can be read."""
        words = (sys.executable, "-m", "agent", "warden", "--config", str(config or self.config))
        given: Mapping[str, str] = {**os.environ, **environment}
        return await asyncio.create_subprocess_exec(*words, env=given, stderr=asyncio.subprocess.PIPE)

    async def start(self, **environment: str) -> Client:
        """Returns when it listens."""
        self.running = await self.spawn(**environment)
        deadline_s = time.monotonic() + _START_S
        while "warden_listening" not in self.text():
            assert time.monotonic() < deadline_s, self.text()
            await asyncio.sleep(0.01)
        return await Client.connect(self.socket)

    def text(self) -> str:
        """The log of the server that runs now."""
        return self.log.read_text() if self.log.exists() else ""

    async def end(self, number: int) -> int:
        assert self.running is not None
        self.running.send_signal(number)
        await asyncio.wait_for(self.running.communicate(), 30)
        status = self.running.returncode
        assert status is not None
        self.running = None
        self.log.rename(self.log.with_suffix(".former"))
        return status
