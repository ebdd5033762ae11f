"""The start of one instance: droplet, container, process, in this order.

Each step registers what it has taken on the exit stack of the life (`held`). So a start may fail, or be given up for a stop, at any
point, and everything is released in reverse order. A start that a former agent had begun continues with its container.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from agent import plain_yaml
from agent.cause import public_address
from agent.depot import AgentContainer
from agent.droplets.archive import ArchiveError
from agent.droplets.layers import Layer, LayerError
from agent.droplets.transfer import TransferError
from agent.droplets.unpacker import JailError
from agent.inside.environment import VARIABLE_BYTES, too_long
from agent.inside.limits import ipv6_left_out
from agent.inside.start import HOME, OLD_STARTUP
from agent.instances.instance import Instance
from agent.instances.parts import LifeParts, container_of
from agent.instances.process import WEB, Process
from agent.instances.specs import make_job, make_spec
from agent.logs import Log
from agent.stacks import no_stack, rootfs_of
from container import CreateError, FilesError, NoLease, NoPorts, SpecError, WshdError, WshdGone
from wsh.units import MIB

NO_COMMAND = "missing start command"
FAILED = "failed to start"
NO_PORT = "Not enough port resource available."
STAGING_INFO = f"{HOME}/staging_info.yml"


class StartFailed(RuntimeError):
    """``description`` is published; the text, with the cause, goes to the log."""

    def __init__(self, description: str, why: str, status: int = -1) -> None:
        super().__init__(why)
        self.description = description
        self.status = status


def host_port(instance: Instance) -> int | None:
    return instance.port.host_port if instance.port is not None else None


async def launch(
    instance: Instance, parts: LifeParts, held: AsyncExitStack, log: Log
) -> tuple[AgentContainer, Process]:
    """Returns when the app's process has started. StartFailed.

    A start slot is held only while the container is made and its process started: a droplet may arrive slowly, and an app may take
    minutes to open its port.
    """
    if container_of(instance, parts.depot) is not None:  # a former agent had made it
        container = take_up(instance, parts, held)
        async with parts.starts:
            return container, await _spawn(instance, container, parts, log)
    rootfs, layer = await _prepare(instance, parts, held, log)
    async with parts.starts:
        container = await _create(instance, parts, held, rootfs, layer)
        return container, await _spawn(instance, container, parts, log)


def take_up(instance: Instance, parts: LifeParts, held: AsyncExitStack) -> AgentContainer:
    """Uses the container of a former agent; it is released like one that was made here."""
    container = parts.depot.find(instance.handle or "")
    held.push_async_callback(parts.depot.destroy, container.handle)
    if sha1 := instance.message.sha1:
        held.enter_context(parts.layers.use(sha1))
        layer = parts.layers.known(sha1)
        instance.layer_bytes = layer.bytes if layer is not None else 0
    return container


async def _prepare(
    instance: Instance, parts: LifeParts, held: AsyncExitStack, log: Log
) -> tuple[Path, Layer]:
    """Prepares the parts of the container: the root file system, and the droplet's layer. StartFailed."""
    message, settings = instance.message, parts.settings
    stack = next((one for one in settings.stacks if one.name == message.stack), None)
    if stack is None:
        raise StartFailed(FAILED, f"stack {message.stack!r} is not configured")
    if (why := no_stack(stack.package_path)) is not None:
        raise StartFailed(FAILED, f"stack {message.stack!r}: {why}")
    if left_out := ipv6_left_out(message.egress_network_rules or ()):
        log.warning("egress_rules_left_out", rules=left_out, because="IPv6 is off in containers")
    return rootfs_of(stack.package_path), await _fetch(instance, parts, held)


async def _fetch(instance: Instance, parts: LifeParts, held: AsyncExitStack) -> Layer:
    message = instance.message
    if not message.sha1:
        raise StartFailed(FAILED, "sha1: expected the droplet's checksum, got null")
    limit_bytes = message.limits.disk * MIB
    try:
        layer = await parts.layers.ensure(
            message.sha1, message.executableUri, limit_bytes, owner=instance.app
        )
    except (LayerError, TransferError, ArchiveError, JailError, OSError) as e:
        came_from = public_address(message.executableUri or "")
        raise StartFailed(FAILED, f"droplet {message.sha1} from {came_from}: {e}") from e
    held.enter_context(parts.layers.use(message.sha1))
    if layer.bytes > limit_bytes:
        raise StartFailed(
            FAILED, f"droplet {message.sha1}: {layer.bytes} bytes, limits.disk is {limit_bytes}"
        )
    instance.layer_bytes = instance.disk_bytes = layer.bytes
    return layer


async def _create(
    instance: Instance, parts: LifeParts, held: AsyncExitStack, rootfs: Path, layer: Layer
) -> AgentContainer:
    try:
        spec = make_spec(instance, parts.settings, rootfs, layer)
        container = await parts.depot.create(spec, record=parts.records.record(instance))
    except (SpecError, CreateError, NoLease) as e:
        raise StartFailed(NO_PORT if isinstance(e.__cause__, NoPorts) else FAILED, str(e)) from e
    held.push_async_callback(parts.depot.destroy, container.handle)
    instance.handle = container.handle
    instance.port = container.ports[0] if container.ports else None
    return container


async def _spawn(instance: Instance, container: AgentContainer, parts: LifeParts, log: Log) -> Process:
    instance.started_at_s = parts.clock()
    parts.records.save(instance)
    try:
        command = await start_command(instance, container)
        job = make_job(instance, parts.settings, parts.local_ip, command)
        if (why := too_long(job.env, VARIABLE_BYTES)) is not None:
            raise StartFailed(FAILED, why)
        process = Process(WEB, await container.spawn(job))
    except (WshdError, WshdGone, FilesError, SpecError) as e:
        raise StartFailed(FAILED, str(e)) from e
    parts.registry.has_process(instance, process)
    log.info("instance_spawned", handle=container.handle, port=host_port(instance))
    return process


class StagingInfo(msgspec.Struct, frozen=True):
    """The part of a droplet's staging_info.yml that a start needs."""

    start_command: str | None = None


async def start_command(instance: Instance, container: AgentContainer) -> str:
    """The message's command, else the droplet's, else `./startup` for droplets from before 2013 (docs/apps.md, "The start")."""
    if instance.message.start_command:
        return instance.message.start_command
    try:
        text = await container.read_file(STAGING_INFO, plain_yaml.LIMIT_BYTES + 1)
    except FileNotFoundError:
        return OLD_STARTUP
    except OSError as e:  # a directory, a link in a circle: it is there, and gives no command
        raise StartFailed(NO_COMMAND, f"staging_info.yml: {e.strerror}") from e
    try:
        info = await plain_yaml.load_aside(text, StagingInfo)
    except plain_yaml.YamlError as e:
        raise StartFailed(NO_COMMAND, f"staging_info.yml: {e}") from e
    if not info.start_command:
        raise StartFailed(NO_COMMAND, "neither the message nor staging_info.yml has one")
    return info.start_command
