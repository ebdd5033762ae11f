"""The life of one instance: one task from its start to its end.

A stop does not cancel this task; it sets `stop_requested`, and the task cancels its own child and gives back what it holds. So
a stop wins over a start at every point of it, and never waits behind one (docs/protocol.md, "Stop message").
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent import plain_yaml
from agent.cause import host_paths, public, public_address
from agent.config import Settings
from agent.droplets.archive import ArchiveError
from agent.droplets.layers import Layer, LayerError, Layers
from agent.droplets.transfer import TransferError
from agent.droplets.unpacker import JailError
from agent.inside.environment import VARIABLE_BYTES, too_long
from agent.inside.limits import ipv6_left_out
from agent.inside.start import HOME, OLD_STARTUP
from agent.instances import crashes
from agent.instances.crashes import keep_cause
from agent.instances.instance import OUT_OF_MEMORY, Exit, Instance, InstanceEvent, State
from agent.instances.launch import make_job, make_spec
from agent.instances.memory_kills import MemoryKills
from agent.instances.readiness import health_check
from agent.instances.stats import sample
from agent.logs import Log
from agent.stacks import no_stack, rootfs_of
from container import (
    Container,
    CreateError,
    Depot,
    ExitStatus,
    FilesError,
    Job,
    NoLease,
    NoPorts,
    SpecError,
    UnknownHandle,
    WshdError,
    WshdGone,
)
from wsh.units import MIB

NOT_HEALTHY = "failed to accept connections within health check timeout"
NO_COMMAND = "missing start command"
FAILED = "failed to start"
NO_PORT = "Not enough port resource available."
EXITED = "app instance exited"
STAGING_INFO = f"{HOME}/staging_info.yml"


class StartFailed(RuntimeError):
    """``description`` goes on the bus; the text, with the cause, to the log."""

    def __init__(self, description: str, why: str, status: int = -1) -> None:
        super().__init__(why)
        self.description = description
        self.status = status


@dataclass(frozen=True, slots=True)
class Home:
    """What a life needs of its surroundings."""

    settings: Settings
    depot: Depot
    layers: Layers
    local_ip: str
    starts: asyncio.Semaphore
    log: Log
    happen: Callable[[Instance, InstanceEvent], None]
    wait_passed: Callable[[asyncio.Event, float], Awaitable[None]]
    save: Callable[[Instance], None]
    """Marks an instance as changed."""
    record: Callable[[Instance], bytes]
    """What is remembered of it, as it is now."""
    written: Callable[[], Awaitable[None]]
    """Until all that was marked is on disk."""
    admitted: Callable[[Instance], asyncio.Event]
    deadline_s: Callable[[], float]


async def live(instance: Instance, home: Home) -> None:
    """From BORN (or, with a container, from where a former agent left it) until nothing but a crash record is left.

    Cancelled, it lets go: the agent leaves (or broke), what runs goes on, and the next agent takes it over.
    """
    log = home.log.bind(app=instance.app, instance=instance.id, index=instance.index)
    held = AsyncExitStack()
    course = asyncio.create_task(_course(instance, home, held, log), name=f"course-{instance.id[:8]}")
    stop = asyncio.create_task(instance.stop_requested.wait(), name=f"stop-{instance.id[:8]}")
    try:
        await asyncio.wait({course, stop}, return_when=asyncio.FIRST_COMPLETED)
        if instance.stop_requested.is_set():
            await _stop(instance, home, log)
        else:
            await _conclude(instance, home, course, log)
    finally:
        for task in (course, stop):
            task.cancel()
        await asyncio.gather(course, stop, return_exceptions=True)
    await home.written()  # before its container goes: the next agent must not take this end for another
    await _give_back(held, log)
    if instance.state is State.STOPPING:
        home.happen(instance, InstanceEvent.GONE)


async def _give_back(held: AsyncExitStack, log: Log) -> None:
    """What cannot be given back costs nobody else: the next agent's recovery finds and removes it."""
    try:
        await held.aclose()
    except Exception as e:  # the outermost frame of a life: it costs this instance only
        log.exception("instance_not_removed_whole", error=repr(e))


async def _stop(instance: Instance, home: Home, log: Log) -> None:
    """TERM first where something runs, KILL when the grace is over; a start that is under way is given up."""
    await home.written()  # else an agent that is killed now leaves an end that looks like a crash
    started = time.monotonic()
    container = _container_of(instance, home)
    if container is not None and instance.job is not None and instance.job.status is None:
        await _drain(instance, home)
        grace_s = min(home.settings.instance.stop_grace_s, home.deadline_s())
        try:
            await container.stop(grace_s)
        except Exception as e:  # whatever it was: it is killed with its container
            log.warning("instance_stop_failed_killing", error=repr(e))
    log.info("instance_stopped", after_s=round(time.monotonic() - started, 3))


async def _drain(instance: Instance, home: Home) -> None:
    """No router may send another request to an app that has its TERM: its unregister is with the server first, for which
    there is a bound; routers then have a moment to act on it, and the requests in flight to end."""
    if instance.withdrawn is None:
        return
    settings = home.settings.instance
    await home.wait_passed(instance.withdrawn, min(settings.unregister_wait_s, home.deadline_s()))
    await asyncio.sleep(min(settings.drain_s, home.deadline_s()))


async def _conclude(instance: Instance, home: Home, course: asyncio.Task[Exit], log: Log) -> None:
    """The course has ended by itself: that is a crash."""
    cause = ""
    try:
        instance.exit = course.result()
        event = InstanceEvent.EXITED
    except StartFailed as e:
        log.warning("instance_start_failed", description=e.description, error=str(e))
        instance.exit = Exit(e.status, e.description)
        event, cause = InstanceEvent.FAILED, str(e)
    except Exception as e:  # the outermost frame of a start: it costs this instance only
        log.exception("instance_start_failed", description=FAILED, error=repr(e))
        instance.exit = Exit(-1, FAILED)
        event, cause = InstanceEvent.FAILED, f"an error of the agent's own ({type(e).__name__})"
    instance.crashed_at_s = int(time.time())
    log.info(
        "instance_exited",
        status=instance.exit.status,
        signal=instance.exit.signal,
        description=instance.exit.description,
    )
    record = home.settings.base_dir / "crashes" / instance.id
    try:
        if cause:
            told = public(cause, host_paths(home.settings))
            await asyncio.to_thread(keep_cause, record, told)
        if instance.job is not None:
            await crashes.keep(instance.job, record)
        instance.kept_bytes = crashes.kept_bytes(record)
    except OSError as e:  # the host's disk may be full; an exit is published all the same
        log.warning("crash_output_not_kept", error=str(e))
    home.happen(instance, event)


def _container_of(instance: Instance, home: Home) -> Container | None:
    if instance.handle is None:
        return None
    try:
        return home.depot.find(instance.handle)
    except UnknownHandle:
        return None


async def _course(instance: Instance, home: Home, held: AsyncExitStack, log: Log) -> Exit:
    """From wherever the instance stands, which a former agent may have left: with a job, with a container only, or with nothing."""
    began = time.monotonic()
    if instance.stop_requested.is_set():  # by a former agent: nothing is begun, what there is is given back
        if _container_of(instance, home) is not None:
            _take_up(instance, home, held)
        return instance.exit
    if instance.job is not None:
        container, job = _take_up(instance, home, held), instance.job
    else:
        await home.admitted(instance).wait()
        home.happen(instance, InstanceEvent.START)
        began = time.monotonic()
        container, job = await _start(instance, home, held, log)
    kills = _follow_memory(instance, container, job, held)
    if not instance.healthy and job.status is None:
        await _until_healthy(instance, home, container, job, log)
        if instance.healthy:
            log.info(
                "instance_running", after_s=round(time.monotonic() - began, 3), port=_host_port(instance)
            )
            await sample(instance, container, log)
            home.happen(instance, InstanceEvent.HEALTHY)
    status = await job.wait()
    return exit_of(status, out_of_memory=kills.came_with_the_end())


def _follow_memory(instance: Instance, container: Container, job: Job, held: AsyncExitStack) -> MemoryKills:
    kills = MemoryKills(instance, container, job)
    watch = asyncio.create_task(kills.watch(), name=f"memory-{instance.id[:8]}")
    held.callback(watch.cancel)
    return kills


def _take_up(instance: Instance, home: Home, held: AsyncExitStack) -> Container:
    """The container of a former agent; given back as one that was made here."""
    container = home.depot.find(instance.handle or "")
    held.push_async_callback(home.depot.destroy, container.handle)
    if sha1 := instance.message.sha1:
        held.enter_context(home.layers.use(sha1))
        layer = home.layers.known(sha1)
        instance.layer_bytes = layer.bytes if layer is not None else 0
    return container


def exit_of(status: ExitStatus, *, out_of_memory: bool) -> Exit:
    """What is published of an end (docs/protocol.md, "Exits"). A shell in between gives the KILL of its child as 137. Pure.

    ``out_of_memory``: there was such a kill. It was the end only of what ended by one.
    """
    if status.lost:
        return Exit(-1, "unknown")
    if out_of_memory and not status.overran and (status.signal == signal.SIGKILL or status.code == 137):
        return Exit(255 if status.code == 137 else status.number, OUT_OF_MEMORY, status.signal)
    return Exit(status.number, EXITED, status.signal)


def _host_port(instance: Instance) -> int | None:
    return instance.port.host_port if instance.port is not None else None


async def _start(instance: Instance, home: Home, held: AsyncExitStack, log: Log) -> tuple[Container, Job]:
    """The slots of starts are not held for longer than needed: a droplet may trickle, an app may take minutes to open its port."""
    if (container := _container_of(instance, home)) is not None:  # a former agent had made it
        _take_up(instance, home, held)
        async with home.starts:
            return container, await _spawn(instance, container, home, log)
    rootfs, layer = await _prepare(instance, home, held, log)
    async with home.starts:
        container = await _create(instance, home, held, rootfs, layer)
        return container, await _spawn(instance, container, home, log)


async def _prepare(instance: Instance, home: Home, held: AsyncExitStack, log: Log) -> tuple[Path, Layer]:
    """What the container is made of: the root file system, and the droplet's layer. StartFailed."""
    message, settings = instance.message, home.settings
    stack = next((one for one in settings.stacks if one.name == message.stack), None)
    if stack is None:
        raise StartFailed(FAILED, f"stack {message.stack!r} is not configured")
    if (why := no_stack(stack.package_path)) is not None:
        raise StartFailed(FAILED, f"stack {message.stack!r}: {why}")
    if left_out := ipv6_left_out(message.egress_network_rules or ()):
        log.warning("egress_rules_left_out", rules=left_out, because="IPv6 is off in containers")
    return rootfs_of(stack.package_path), await _fetch(instance, home, held, log)


async def _create(
    instance: Instance, home: Home, held: AsyncExitStack, rootfs: Path, layer: Layer
) -> Container:
    try:
        spec = make_spec(instance, home.settings, rootfs, layer)
        container = await home.depot.create(spec, record=home.record(instance))
    except (SpecError, CreateError, NoLease) as e:
        raise StartFailed(NO_PORT if isinstance(e.__cause__, NoPorts) else FAILED, str(e)) from e
    held.push_async_callback(home.depot.destroy, container.handle)
    instance.handle = container.handle
    instance.port = container.ports[0] if container.ports else None
    return container


async def _spawn(instance: Instance, container: Container, home: Home, log: Log) -> Job:
    instance.started_at_s = time.time()
    home.save(instance)
    try:
        command = await start_command(instance, container)
        job = make_job(instance, home.settings, home.local_ip, command)
        if (why := too_long(job.env, VARIABLE_BYTES)) is not None:
            raise StartFailed(FAILED, why)
        started = await container.spawn(job)
    except (WshdError, WshdGone, FilesError, SpecError) as e:
        raise StartFailed(FAILED, str(e)) from e
    instance.has_started(started)
    log.info("instance_spawned", handle=container.handle, port=_host_port(instance))
    return started


async def _fetch(instance: Instance, home: Home, held: AsyncExitStack, log: Log) -> Layer:
    message = instance.message
    if not message.sha1:
        raise StartFailed(FAILED, "sha1: expected the droplet's checksum, got null")
    limit_bytes = message.limits.disk * MIB
    try:
        layer = await home.layers.ensure(message.sha1, message.executableUri, limit_bytes, owner=instance.app)
    except (LayerError, TransferError, ArchiveError, JailError, OSError) as e:
        came_from = public_address(message.executableUri or "")
        raise StartFailed(FAILED, f"droplet {message.sha1} from {came_from}: {e}") from e
    held.enter_context(home.layers.use(message.sha1))
    if layer.bytes > limit_bytes:
        raise StartFailed(
            FAILED, f"droplet {message.sha1}: {layer.bytes} bytes, limits.disk is {limit_bytes}"
        )
    instance.layer_bytes = instance.disk_bytes = layer.bytes
    return layer


async def _until_healthy(instance: Instance, home: Home, container: Container, job: Job, log: Log) -> None:
    """Sets `healthy`, or returns when the job has ended first; StartFailed: the time ran out."""
    checking = await health_check(instance, container, home.settings, home.local_ip, log)
    if checking is None:
        instance.healthy = True
        return
    waiting, too_late = checking
    check = asyncio.create_task(waiting, name=f"health-{instance.id[:8]}")
    exited = asyncio.create_task(job.wait(), name=f"exit-{instance.id[:8]}")
    try:
        await asyncio.wait({check, exited}, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            return
        if not check.result():
            raise StartFailed(NOT_HEALTHY, too_late)
        instance.healthy = True
    finally:
        for task in (check, exited):
            task.cancel()
        await asyncio.gather(check, exited, return_exceptions=True)


class StagingInfo(msgspec.Struct, frozen=True):
    """The part of a droplet's staging_info.yml that a start needs."""

    start_command: str | None = None


async def start_command(instance: Instance, container: Container) -> str:
    """The message's, else the droplet's, else `./startup` of droplets from before 2013 (docs/apps.md, "The start")."""
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
