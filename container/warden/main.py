"""The process of `garrison warden`: a depot, the service on it, the socket, and the signals.

USR2         drain: accept nobody, let requests end, leave the containers and end with status 0
TERM, INT    end at once; containers run on, and the next server takes them up
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from container.aio import Log
from container.depot import Depot
from container.warden.config import Config, depot_settings, service_settings
from container.warden.server import Server
from container.warden.service import WardenService


async def run(config: Config, log: Log) -> None:
    """Serves until a signal ends it. HostUnfit: the host cannot have a depot; OSError: the socket or the pidfile."""
    drained, ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, drained.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    depot = await Depot.open(depot_settings(config), log=log)
    try:
        recovery = await depot.recover()
        log.info("warden_recovered", found=len(recovery.found), removed=len(recovery.removed))
        service = WardenService(depot, service_settings(config), log)
        try:
            service.take_up()
            server = Server(
                service,
                Path(config.server.unix_domain_path),
                config.server.unix_domain_permissions,
                log,
            )
            await server.open(config.health_check_server.port)
            with _pidfile(config.server.pidfile):
                log.info("warden_listening", path=config.server.unix_domain_path)
                await _first(drained, ended)
                if drained.is_set():
                    log.info("warden_draining")
                    await server.drain()
            server.close()
        finally:
            await service.close()
    finally:
        await depot.close(remove_tables=not depot.handles())
        log.info("warden_ended")


async def _first(*events: asyncio.Event) -> None:
    waiting = {asyncio.create_task(event.wait()) for event in events}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


@contextlib.contextmanager
def _pidfile(path: str | None) -> Iterator[None]:
    if path is None:
        yield
        return
    Path(path).write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)
