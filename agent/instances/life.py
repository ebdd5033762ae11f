"""The life of one instance: one task from its start to its end.

Invariant: a stop takes precedence over a start at every point of it, and never waits for it (docs/protocol.md, "Stop message").

So a stop does not cancel the life. It sets `stop_requested`; the life then cancels its own child task `_course`, in which the start
or the wait for the app's end runs, and releases what that task has taken. Cancelling the life itself has another meaning: the agent
ends, the app runs on, and the next agent takes it up. With one task for both, a stop during a call of the container manager could
not be distinguished from the agent's end.

What a life takes (container, layer, watches) is on one exit stack, in the order in which it was taken. Its record is on disk before
the container is removed, so that an agent that is killed in between does not take this end for another one.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

from agent.cause import host_paths, public
from agent.depot import AgentContainer
from agent.instances import crashes
from agent.instances.broken import unless_broken
from agent.instances.crashes import keep_cause
from agent.instances.health import HealthPhase
from agent.instances.instance import OUT_OF_MEMORY, Exit, Instance, InstanceEvent, State
from agent.instances.launch import FAILED, StartFailed, host_port, launch, take_up
from agent.instances.memory_kills import MemoryKills
from agent.instances.parts import LifeParts, container_of
from agent.instances.process import Process
from agent.instances.stats import sample
from agent.logs import Log
from container import ExitStatus

NOT_HEALTHY = "failed to accept connections within health check timeout"
EXITED = "app instance exited"


async def live(instance: Instance, parts: LifeParts) -> None:
    """Runs from BORN (or from where a former agent left the instance) until nothing but a crash record is left."""
    log = parts.log.bind(app=instance.app, instance=instance.id, index=instance.index)
    held = AsyncExitStack()
    course = asyncio.create_task(_course(instance, parts, held, log), name=f"course-{instance.id[:8]}")
    stop = asyncio.create_task(instance.stop_requested.wait(), name=f"stop-{instance.id[:8]}")
    try:
        await asyncio.wait({course, stop}, return_when=asyncio.FIRST_COMPLETED)
        if instance.stop_requested.is_set():
            await _stop(instance, parts, log)
        else:
            await _conclude(instance, parts, course, log)
    finally:
        for task in (course, stop):
            task.cancel()
        await asyncio.gather(course, stop, return_exceptions=True)
    await parts.records.wait_written()
    await _give_back(held, log)
    if instance.state is State.STOPPING:
        parts.happen(instance, InstanceEvent.GONE)


async def _give_back(held: AsyncExitStack, log: Log) -> None:
    """Releases what the life holds. An error here affects no other instance: the next agent's recovery finds and removes the rest."""
    try:
        await held.aclose()
    except Exception as e:  # the outermost frame of a life: it costs this instance only
        log.exception("instance_not_removed_whole", error=repr(e))


# ---- from the start to the app's end -------------------------------------------------------------------------------


async def _course(instance: Instance, parts: LifeParts, held: AsyncExitStack, log: Log) -> Exit:
    """Continues from the instance's present stage: with a process, with a container only, or with nothing. StartFailed."""
    clock = asyncio.get_running_loop().time
    began_s = clock()
    if instance.stop_requested.is_set():  # by a former agent: nothing is begun, what there is is given back
        if container_of(instance, parts.depot) is not None:
            take_up(instance, parts, held)
        return instance.exit
    if (found := instance.web) is not None:
        container, process = take_up(instance, parts, held), found
    else:
        await parts.admitted(instance).wait()
        parts.happen(instance, InstanceEvent.START)
        began_s = clock()
        container, process = await launch(instance, parts, held, log)
    return await unless_broken(_until_end(instance, parts, held, log, container, process, began_s), container)


async def _until_end(
    instance: Instance,
    parts: LifeParts,
    held: AsyncExitStack,
    log: Log,
    container: AgentContainer,
    process: Process,
    began_s: float,
) -> Exit:
    """The app runs. StartFailed: it is not healthy in time."""
    kills = _follow_memory(instance, container, process, parts, held)
    if not instance.is_healthy and process.is_running:
        await _until_healthy(instance, parts, container, process)
        if instance.is_healthy:
            log.info(
                "instance_running",
                after_s=round(asyncio.get_running_loop().time() - began_s, 3),
                port=host_port(instance),
            )
            await sample(instance, container, log)
            parts.happen(instance, InstanceEvent.HEALTHY)
    status = await process.job.wait()
    return exit_of(status, out_of_memory=kills.came_with_the_end())


def _follow_memory(
    instance: Instance, container: AgentContainer, process: Process, parts: LifeParts, held: AsyncExitStack
) -> MemoryKills:
    def remark(text: str) -> None:
        parts.registry.remark(instance, parts.clock(), text)

    kills = MemoryKills(instance.memory_mb, container, process, remark)
    watch = asyncio.create_task(kills.watch(), name=f"memory-{instance.id[:8]}")
    held.callback(watch.cancel)
    return kills


async def _until_healthy(
    instance: Instance, parts: LifeParts, container: AgentContainer, process: Process
) -> None:
    """Returns when the instance is healthy, or has ended before that. StartFailed: the time is over."""
    check = asyncio.create_task(parts.prober.check(instance, container), name=f"health-{instance.id[:8]}")
    exited = asyncio.create_task(process.job.wait(), name=f"exit-{instance.id[:8]}")
    try:
        await asyncio.wait({check, exited}, return_when=asyncio.FIRST_COMPLETED)
        if not exited.done():
            check.result()
            if instance.health.phase is HealthPhase.FAILED:
                raise StartFailed(NOT_HEALTHY, instance.health.too_late())
    finally:
        for task in (check, exited):
            task.cancel()
        await asyncio.gather(check, exited, return_exceptions=True)


# ---- its end -------------------------------------------------------------------------------------------------------


async def _stop(instance: Instance, parts: LifeParts, log: Log) -> None:
    """Sends TERM if something runs, and KILL when the grace is over. A start that is under way is given up."""
    await (
        parts.records.wait_written()
    )  # else an agent that is killed now leaves an end that looks like a crash
    clock = asyncio.get_running_loop().time
    began_s = clock()
    container = container_of(instance, parts.depot)
    if container is not None and any(one.is_running for one in instance.processes.values()):
        await _drain(instance, parts)
        grace_s = min(parts.settings.instance.stop_grace_s, parts.left_s())
        try:
            await container.stop(grace_s)
        except Exception as e:  # whatever it was: it is killed with its container
            log.warning("instance_stop_failed_killing", error=repr(e))
    log.info("instance_stopped", after_s=round(clock() - began_s, 3))


async def _drain(instance: Instance, parts: LifeParts) -> None:
    """Makes sure that no router sends a request to an app that has got TERM: waits, for a bounded time, until the server has the
    unregister, and then a moment so that routers act on it and requests in flight end."""
    if instance.withdrawn is None:
        return
    settings = parts.settings.instance
    await parts.wait_passed(instance.withdrawn, min(settings.unregister_wait_s, parts.left_s()))
    await asyncio.sleep(min(settings.drain_s, parts.left_s()))


async def _conclude(instance: Instance, parts: LifeParts, course: asyncio.Task[Exit], log: Log) -> None:
    """The app or its start has ended by itself, which is a crash."""
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
    instance.crashed_at_s = int(parts.clock())
    log.info(
        "instance_exited",
        status=instance.exit.status,
        signal=instance.exit.signal,
        description=instance.exit.description,
    )
    await _keep_record(instance, parts, cause, log)
    parts.happen(instance, event)


async def _keep_record(instance: Instance, parts: LifeParts, cause: str, log: Log) -> None:
    """Stores the app's output and the cause of a failed start, so that both can be read after its container is gone."""
    record = parts.crashes_dir / instance.id
    try:
        if cause:
            text = public(cause, host_paths(parts.settings))
            await asyncio.to_thread(keep_cause, record, text)
        if instance.web is not None:
            await crashes.keep(instance.web.job, record)
        instance.kept_bytes = crashes.kept_bytes(record)
    except OSError as e:  # the host's disk may be full; an exit is published all the same
        log.warning("crash_output_not_kept", error=str(e))


def exit_of(status: ExitStatus, *, out_of_memory: bool) -> Exit:
    """The exit that is published for an end (docs/protocol.md, "Exits"). A shell in between reports the KILL of its child as 137.
    Pure.

    ``out_of_memory``: the kernel killed a process for memory. It explains only an end by a kill.
    """
    if status.lost:
        return Exit(-1, "unknown")
    if out_of_memory and not status.overran and (status.signal == signal.SIGKILL or status.code == 137):
        return Exit(255 if status.code == 137 else status.number, OUT_OF_MEMORY, status.signal)
    return Exit(status.number, EXITED, status.signal)
