"""Checks the health of instances: one loop for every kind of check.

The files that it reads belong to the app. The container manager reads them with a size limit, and never through a link out of the
container.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from agent import plain_yaml
from agent.depot import AgentContainer
from agent.inside.start import HOME
from agent.instances.health import Health, HealthKind, HealthPhase, choose_health, says_running, time_left_s
from agent.instances.instance import Instance
from agent.logs import Log
from container import WrongState

DROPLET_FILE: Final = f"{HOME}/droplet.yaml"
STATE_BYTES: Final = 64 << 10
CONNECT_TIMEOUT_S: Final = 2.0
#: Between two checks. A port is checked more often at first: most apps open it within a fraction of a second.
PERIOD_S: Final = 0.5
FIRST_PERIOD_S: Final = 0.02
PERIOD_GROWTH: Final = 1.5


class Droplet(msgspec.Struct, frozen=True):
    """The part of a droplet.yaml that is used."""

    state_file: str | None = None


async def accepts(host: str, port: int) -> bool:
    """True if a TCP connection is accepted."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def reports_running(container: AgentContainer, path: str) -> bool:
    """True if the app's state file says RUNNING. WrongState: the container has ended."""
    try:
        return says_running(await container.read_file(path, STATE_BYTES))
    except OSError:  # not there yet, or something else than a file
        return False


async def state_file(container: AgentContainer) -> str | None:
    """The file by which the app reports that it runs, relative to its home; None: it has none.

    YamlError, OSError: there is a droplet.yaml that cannot be used.
    """
    try:
        text = await container.read_file(DROPLET_FILE, plain_yaml.LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None
    found = (await plain_yaml.load_aside(text, Droplet)).state_file
    if found and "\0" in found:
        raise plain_yaml.YamlError("state_file: expected a path")
    return found or None


@dataclass(frozen=True, slots=True)
class Prober:
    """``local_ip``: the address of this host's published ports. ``timeout_s``: for an app whose message has none. ``clock``:
    seconds since 1970."""

    local_ip: str
    timeout_s: float
    clock: Callable[[], float]
    log: Log

    async def check(self, instance: Instance, container: AgentContainer) -> None:
        """Runs until the instance's health is HEALTHY or FAILED."""
        instance.health = await self._choose(instance, container)
        match instance.health.kind:
            case HealthKind.NONE:
                return
            case HealthKind.PORT:
                port = instance.health.port
                passed = await self._until(instance, lambda: accepts(self.local_ip, port), FIRST_PERIOD_S)
            case HealthKind.FILE:
                path = instance.health.path
                passed = await self._until(instance, lambda: reports_running(container, path), PERIOD_S)
        instance.health = instance.health.enter(HealthPhase.HEALTHY if passed else HealthPhase.FAILED)

    async def _choose(self, instance: Instance, container: AgentContainer) -> Health:
        try:
            path = await state_file(container)
        except (plain_yaml.YamlError, OSError) as e:
            self.log.warning("droplet_file_ignored", instance=instance.id, error=str(e))
            path = None
        given = instance.message.health_check_timeout
        return choose_health(
            path,
            uris=instance.uris,
            host_port=instance.port.host_port if instance.port is not None else None,
            timeout_s=self.timeout_s if given is None else float(given),
        )

    async def _until(self, instance: Instance, passes: Callable[[], Awaitable[bool]], pause_s: float) -> bool:
        """True as soon as the check passes; False when the time is over, or the container has ended."""
        loop = asyncio.get_running_loop()
        left_s = time_left_s(instance.health.timeout_s, instance.started_at_s, self.clock())
        deadline = loop.time() + left_s
        while True:
            try:
                if await passes():
                    return True
            except WrongState:
                return False
            if (left_s := deadline - loop.time()) <= 0:
                return False
            await asyncio.sleep(min(pause_s, left_s))  # the last check is made when the time is over
            pause_s = min(pause_s * PERIOD_GROWTH, PERIOD_S)
