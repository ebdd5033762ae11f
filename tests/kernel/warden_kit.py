"""Helpers of Warden's tests: a server in this process, on a real depot, with a root file system of busybox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from depot_kit import close_empty, make_stack, settings_for, until
from warden_client import Client

from container import Depot
from container.aio import SilentLog
from container.warden.jobs import spool_id
from container.warden.server import Server
from container.warden.service import WardenService, WardenServiceSettings


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stack with a /bin/bash, which busybox has not: it hands its standard input to the shell that there is."""
    made = make_stack(tmp_path_factory.mktemp("warden-rootfs"))
    (made / "bin/bash").write_text("#!/bin/sh\nexec /bin/sh\n")
    (made / "bin/bash").chmod(0o755)
    return made


@dataclass
class Warden:
    """``socket``: where it listens."""

    depot: Depot
    service: WardenService
    server: Server
    settings: WardenServiceSettings
    socket: Path

    async def client(self) -> Client:
        return await Client.connect(self.socket)

    async def wrote(self, job: int) -> None:
        """Returns when the job has written something: it runs, and its traps are set."""
        boxes = [self.depot.find(handle) for handle in self.depot.handles()]
        (found,) = [box.jobs[spool_id(job)] for box in boxes if spool_id(job) in box.jobs]
        await until(lambda: found.size_bytes("stdout") > 0, lambda: "the job wrote nothing", 30)

    def is_linked(self, handle: bytes, job: int) -> bool:
        """Whether a client waits for the end of the job."""
        found = self.service._containers[handle].jobs.get(job)
        return found is not None and found.is_linked

    async def close(self) -> None:
        self.server.close()
        await self.service.close()


async def open_warden(base: Path, rootfs: Path, **changes: Any) -> Warden:
    """On a new depot below ``base``, or on the one that a former server has left there."""
    depot = await Depot.open(settings_for(base))
    await depot.recover()
    settings = replace(WardenServiceSettings(rootfs=rootfs, cgroup_links=base / "cgroup"), **changes)
    service = WardenService(depot, settings, SilentLog())
    service.take_up()
    server = Server(service, base / "warden.sock", 0o700, SilentLog())
    await server.open(None)
    return Warden(depot, service, server, settings, base / "warden.sock")


@pytest_asyncio.fixture
async def warden(tmp_path: Path, rootfs: Path) -> AsyncIterator[Warden]:
    made = await open_warden(tmp_path, rootfs)
    try:
        yield made
    finally:
        await made.close()
        await close_empty(made.depot)


@pytest_asyncio.fixture
async def client(warden: Warden) -> AsyncIterator[Client]:
    made = await warden.client()
    try:
        yield made
    finally:
        await made.close()
