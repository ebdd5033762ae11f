"""Takes up the instances and stagings that a former agent left, from the memory and the depot.

An instance's record exists twice: in the memory, and as a copy beside its container's snapshot. The record in the memory is
the newer one. Where it is lost the copy is used, so that a damaged memory ends no app. `gather` joins both; `course_of`
decides how each instance continues; `take_over` carries it out.

Each recorded instance continues in a task that owns its container, or its end is published. The caller destroys the
containers without an owner, except those in `Left.not_ours`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec

from agent.bus import messages as m
from agent.bus.connection import Bus
from agent.depot import AgentContainer, AgentDepot
from agent.instances.health import remembered
from agent.instances.instance import Course, Exit, Instance, State
from agent.instances.keeper import Keeper
from agent.instances.launch import FAILED
from agent.instances.parts import container_of
from agent.instances.process import WEB, found_processes
from agent.instances.registry import Registry
from agent.logs import Log
from agent.memory import records
from agent.memory.agent import AgentMemory
from agent.memory.records import Later, SavedInstance, SavedStaging, UnreadableRecord, load_instance
from agent.staging.keeper import RESTARTED
from container import Recovery

#: In seconds. A start without a container that is older is not continued, but published as failed. Its controller then starts
#: the instance again, here or elsewhere.
START_KEPT_S = 300.0


# ---- joining memory and depot --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Left:
    """What the former agent left. ``instances``: by record name. ``not_ours``: handles of containers whose records were written
    by a later release; this agent cannot read them, and must not touch them."""

    instances: dict[str, SavedInstance] = field(default_factory=dict)
    not_ours: set[str] = field(default_factory=set)


def gather(remembered: Mapping[str, SavedInstance], depot: AgentDepot, recovered: Recovery, log: Log) -> Left:
    """The records of the memory, plus those that only a copy in the depot still has."""
    left = Left(dict(remembered))
    for handle in depot.handles():
        container = depot.find(handle)
        if (data := container.record) is not None:
            _join(left, handle, data, log)
        else:
            _join_without_copy(left, container)
    for handle, data in recovered.records.items():
        _join(left, handle, data, log)
    return left


def _join(left: Left, handle: str, data: bytes, log: Log) -> None:
    try:
        copy = records.decode_instance(data)
    except Later as e:
        left.not_ours.add(handle)
        log.error("instance_of_a_later_version_left_alone", handle=handle, error=str(e))
        return
    except UnreadableRecord as e:
        log.warning("instance_copy_damaged", handle=handle, error=str(e))
        return
    known = left.instances.get(copy.record)
    if known is None:
        log.warning("instance_rebuilt_from_its_container", instance=copy.id, handle=handle)
    # the former agent may have been killed after it created the container and before the memory had its handle
    left.instances[copy.record] = msgspec.structs.replace(known or copy, handle=handle)


def _join_without_copy(left: Left, container: AgentContainer) -> None:
    """Find the record of a container without a copy, which a release before copies has left. Its memory may lack the handle of
    a start that was under way; then the instance's private id identifies the record."""
    private_id = container.properties.get("instance")
    if private_id is None or any(one.handle == container.handle for one in left.instances.values()):
        return
    waiting = [
        name
        for name, one in left.instances.items()
        if one.handle is None and one.state is State.STARTING and one.private_id == private_id
    ]
    if len(waiting) == 1:
        found = msgspec.structs.replace(left.instances[waiting[0]], handle=container.handle)
        left.instances[waiting[0]] = found


# ---- deciding and carrying out -------------------------------------------------------------------------------------


_STARTING = frozenset({State.BORN, State.STARTING})
#: The courses of instances that get a task, which owns the container. A stop needs one too: it sends TERM only after the
#: server has the unregister.
GOES_ON = frozenset({Course.RUN, Course.START, Course.BEGIN, Course.STOP})


def course_of(saved: SavedInstance, *, has_container: bool, has_app: bool, now_s: float) -> Course:
    """Decide how an instance continues. ``has_app``: its web process is in the container. ``now_s``: since 1970. Pure."""
    if saved.state in (State.CRASHED, State.STOPPED):
        return Course.CRASHED
    if saved.state is State.STOPPING:
        return Course.STOP
    is_starting = saved.state in _STARTING or (saved.state is State.EVACUATING and not saved.healthy)
    if has_app:
        return Course.START if is_starting else Course.RUN
    if not is_starting or not saved.whole:
        return Course.LOST
    if has_container:
        return Course.BEGIN
    return Course.BEGIN if abs(now_s - saved.state_since_s) <= START_KEPT_S else Course.LOST


def answer_stagings(left: Mapping[str, SavedStaging], memory: AgentMemory, bus: Bus) -> None:
    """Publish a failure as the last reply of each staging, since stagings are not continued. The memory keeps a record until
    the outbox has its reply."""
    for name, one in left.items():
        memory.take_up_staging(name, one)
        bus.publish_event(
            m.StagingRefused(one.task_id, RESTARTED),
            reply_to=one.reply_to,
            on_kept=partial(memory.forget_staging, name),
        )


async def take_over(
    left: Left,
    depot: AgentDepot,
    registry: Registry,
    keeper: Keeper,
    begin: Callable[[Instance], None],
    sample: Callable[[Instance, AgentContainer], Awaitable[None]],
    log: Log,
    clock: Callable[[], float],
) -> set[str]:
    """Continue each instance from its recorded state. Returns the handles of the containers that have an owner now.

    The exit of an instance that ended without an agent is published once; that of a crash that was recorded is not repeated.
    """
    owned = set[str]()
    for one in left.instances.values():
        instance = load_instance(one)
        registry.add(instance)
        container = container_of(instance, depot)
        processes = found_processes(container.jobs) if container is not None else {}
        course = course_of(one, has_container=container is not None, has_app=WEB in processes, now_s=clock())
        log.info("instance_resumed", instance=instance.id, was=one.state.value, course=course.name.lower())
        if container is None and course is Course.BEGIN:
            instance.handle = instance.port = None
        elif container is not None and course in GOES_ON:
            owned.add(container.handle)
            instance.processes = processes
            instance.port = container.ports[0] if container.ports else None
            if course is not Course.STOP:
                is_up = instance.web is not None and instance.web.is_running
                instance.health = remembered(course is Course.RUN and is_up)
            await sample(instance, container)
        _go_on(instance, one, course, keeper, clock())
        if course in GOES_ON:
            begin(instance)
    return owned


def _go_on(instance: Instance, saved: SavedInstance, course: Course, keeper: Keeper, now_s: float) -> None:
    at_s = saved.state_since_s
    if course is Course.LOST:
        at_s = now_s
        _note_loss(instance, saved, at_s)
    elif course is Course.STOP:
        at_s = now_s  # the stop starts again from its beginning
    keeper.take_up(instance, course, evacuating=saved.state is State.EVACUATING, at_s=at_s)


def _note_loss(instance: Instance, saved: SavedInstance, now_s: float) -> None:
    # A route may exist though the record lacks it, since an older release recorded it only after publishing. `routed` is
    # recorded now, so that the agent after this one knows of it too.
    instance.routed = bool(instance.uris)
    instance.health = remembered(instance.routed)
    instance.crashed_at_s = int(now_s)
    if saved.state in _STARTING:
        instance.handle = None
        instance.exit = Exit(-1, FAILED)
    else:
        instance.exit = Exit(-1, "unknown")
