"""A new agent takes up what the former one left: what is remembered, joined with what the depot found.

An instance's record lies twice: in the memory, and as a copy beside its container's snapshot. The memory's own is the newer one;
where it is lost the copy takes its place, so that a damaged memory ends no app.
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

#: A start that has waited longer, with nothing made of it yet, is published as failed: its controller asks again, here or elsewhere.
START_KEPT_S = 300.0


# ---- what there is -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Left:
    """``instances`` by record; ``not_ours``: containers whose instances a later release remembers."""

    instances: dict[str, SavedInstance] = field(default_factory=dict)
    not_ours: set[str] = field(default_factory=set)


def gather(remembered: Mapping[str, SavedInstance], depot: AgentDepot, recovered: Recovery, log: Log) -> Left:
    """What the memory knows, and what it has lost and a copy in the depot knows."""
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
    # the container may be there before the memory has its handle
    left.instances[copy.record] = msgspec.structs.replace(known or copy, handle=handle)


def _join_without_copy(left: Left, container: AgentContainer) -> None:
    """Of a release that kept no copies: its memory may lack the handle of a start that was under way."""
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


# ---- what becomes of each ------------------------------------------------------------------------------------------


_STARTING = frozenset({State.BORN, State.STARTING})
#: What has a life, which owns its container. A stop has one too: its unregister is waited for before TERM.
GOES_ON = frozenset({Course.RUN, Course.START, Course.BEGIN, Course.STOP})


def course_of(saved: SavedInstance, *, has_container: bool, has_app: bool, now_s: float) -> Course:
    """Pure."""
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
    """Nobody will finish them. Each gets its last reply, and is remembered until the outbox has that."""
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
    """Each instance goes on where it was; what ended meanwhile is published once, an old crash not again. Returns the handles of the
    containers that have an owner now.
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
        at_s = now_s  # the stop begins anew
    keeper.take_up(instance, course, evacuating=saved.state is State.EVACUATING, at_s=at_s)


def _note_loss(instance: Instance, saved: SavedInstance, now_s: float) -> None:
    # a former release published a route before it remembered that; and a third agent must know that there may be one
    instance.routed = bool(instance.uris)
    instance.health = remembered(instance.routed)
    instance.crashed_at_s = int(now_s)
    if saved.state in _STARTING:
        instance.handle = None
        instance.exit = Exit(-1, FAILED)
    else:
        instance.exit = Exit(-1, "unknown")
