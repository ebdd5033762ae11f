"""A new agent takes up what the former one left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from agent.instances.instance import Event, Exit, Instance, State
from agent.instances.keeper import Keeper
from agent.instances.life import JOB_ID
from agent.instances.registry import Registry
from agent.logs import Log
from agent.snapshot import SavedInstance, load_instance
from container import Container, Depot, UnknownHandle


def container_of(instance: Instance, depot: Depot) -> Container | None:
    try:
        return depot.find(instance.handle) if instance.handle else None
    except UnknownHandle:
        return None


def take_over(
    saved: Iterable[SavedInstance],
    depot: Depot,
    registry: Registry,
    keeper: Keeper,
    begin: Callable[[Instance], None],
    log: Log,
) -> None:
    """Each instance goes on where it was: what ran runs, what ended meanwhile is told once, an old crash is not told again."""
    for one in saved:
        instance = load_instance(one)
        registry.add(instance)
        container = container_of(instance, depot)
        log.info(
            "instance_resumed", instance=instance.id, was=one.state.value, container=container is not None
        )
        if one.state is State.CRASHED:
            keeper.happen(instance, Event.RESUME_CRASHED)
            instance.state_since_s = one.state_since_s
        elif one.state is State.STOPPING:
            keeper.happen(instance, Event.STOP)
            keeper.happen(instance, Event.GONE)  # its container, if any, has no owner now and is destroyed
        elif container is None or (job := container.jobs.get(JOB_ID)) is None or one.state in _UNFINISHED:
            _lost(instance, one, keeper)
        else:
            instance.job = job
            instance.port = container.ports[0] if container.ports else None
            instance.healthy = instance.healthy and job.status is None
            keeper.happen(instance, Event.RESUME)
            instance.state_since_s = one.state_since_s
            if one.state is State.EVACUATING:
                keeper.happen(instance, Event.EVACUATE)
            begin(instance)


#: A start that was under way is not gone on with: it is told as failed, and the health manager asks again.
_UNFINISHED = frozenset({State.BORN, State.STARTING})


def _lost(instance: Instance, saved: SavedInstance, keeper: Keeper) -> None:
    instance.healthy = False
    instance.crashed_at_s = int(time.time())
    if saved.state in _UNFINISHED:
        instance.handle = instance.port = None
        instance.exit = Exit(-1, "failed to start")
    else:
        instance.exit = Exit(-1, "unknown")
    keeper.happen(instance, Event.START)
    keeper.happen(instance, Event.FAILED)
