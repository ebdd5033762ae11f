"""When an app counts as ready: by a file that its droplet names, else by its port, else at once
(docs/protocol.md, "Health check").

The files are the app's own, read by the manager within a bound and never through a link out of the container.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from agent import plain_yaml
from agent.config import Settings
from agent.inside.start import HOME
from agent.instances.health import PERIOD_S, wait_accepting
from agent.instances.instance import Instance
from agent.logs import Log
from container import Container, WrongState

DROPLET_FILE: Final = f"{HOME}/droplet.yaml"
STATE_BYTES: Final = 64 << 10
#: Fixed in the original; the message's own limit is that of a port.
STATE_FILE_TIMEOUT_S: Final = 300.0


class Droplet(msgspec.Struct, frozen=True):
    """The part of a droplet.yaml that counts: an app that has one reports readiness by that file and not by a port."""

    state_file: str | None = None


async def state_file(container: Container) -> str | None:
    """The path inside of the file by which the app reports that it runs; None: it has none.

    YamlError, OSError: there is a droplet.yaml that cannot be taken.
    """
    try:
        text = await container.read_file(DROPLET_FILE, plain_yaml.LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None
    found = (await plain_yaml.load_aside(text, Droplet)).state_file
    if not found:
        return None
    if "\0" in found:
        raise plain_yaml.YamlError("state_file: expected a path")
    return f"{HOME}/{found}"


def says_running(text: bytes) -> bool:
    """Is it JSON whose `state` is RUNNING? Half a file is one that is being written. Pure."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("state") == "RUNNING"


async def wait_state_file(container: Container, path: str, timeout_s: float) -> bool:
    """True as soon as the file has RUNNING; False when the time is over, or the container has ended."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        try:
            if says_running(await container.read_file(path, STATE_BYTES)):
                return True
        except WrongState:
            return False
        except OSError:  # not there yet, or something else than a file
            pass
        if loop.time() + PERIOD_S > deadline:
            return False
        await asyncio.sleep(PERIOD_S)


def health_time_left_s(timeout_s: float, started_at_s: float, now_s: float) -> float:
    """Of an instance's time to open its port; it may have been started by a former agent. A clock that was set gives neither more
    than all of it nor less than none, and with none left the port is still looked at once. Pure."""
    return min(timeout_s, max(0.0, timeout_s - (now_s - started_at_s)))


async def health_check(
    instance: Instance, container: Container, settings: Settings, local_ip: str, log: Log
) -> tuple[Coroutine[Any, Any, bool], str] | None:
    """What to wait for, and the cause if it does not come; None: healthy at once."""

    def left_s(timeout_s: float) -> float:
        return health_time_left_s(timeout_s, instance.started_at_s, time.time())

    try:
        path = await state_file(container)
    except (plain_yaml.YamlError, OSError) as e:
        log.warning("droplet_file_ignored", error=str(e))
        path = None
    if path is not None:
        timeout_s = STATE_FILE_TIMEOUT_S
        return wait_state_file(
            container, path, left_s(timeout_s)
        ), f"{path} did not say RUNNING within {timeout_s} s"
    if not instance.uris or instance.port is None or instance.port.host_port is None:
        return None
    given, port = instance.message.health_check_timeout, instance.port.host_port
    timeout_s = settings.default_health_check_timeout if given is None else float(given)
    return wait_accepting(
        local_ip, port, left_s(timeout_s)
    ), f"port {port} did not accept within {timeout_s} s"
