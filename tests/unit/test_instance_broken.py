"""Which end counts when a container is broken: that of the app, or the damage (agent/instances/broken.py)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from depot_in_memory import MemoryContainer

from agent.instances.broken import unless_broken
from agent.instances.instance import Exit
from container import ContainerSpec, EventKind

ENDED = Exit(3, "app instance exited")


def container() -> MemoryContainer:
    return MemoryContainer("box", ContainerSpec(layers=(Path("/stack"),)), (), "127.0.0.1")


async def ends_now() -> Exit:
    return ENDED


async def runs_on() -> Exit:
    await asyncio.Event().wait()
    raise AssertionError


async def fails() -> Exit:
    raise LookupError("no start command")


async def test_an_app_that_ends_by_itself_has_its_own_exit() -> None:
    assert await unless_broken(ends_now(), container()) == ENDED


async def test_a_course_that_fails_raises_its_error() -> None:
    with pytest.raises(LookupError, match="no start command"):
        await unless_broken(fails(), container())


async def test_damage_ends_an_instance_whose_process_runs_on() -> None:
    """Other events before it change nothing; the course is cancelled."""
    box = container()
    course = asyncio.create_task(unless_broken(runs_on(), box))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    box.events.publish(EventKind.OUT_OF_MEMORY)
    await asyncio.sleep(0.01)
    assert not course.done()
    box.broken = "its network link was deleted"
    box.events.publish(EventKind.BROKEN)
    assert await asyncio.wait_for(course, 5) == Exit(-1, "container broken: its network link was deleted")
    assert not [task for task in asyncio.all_tasks() if "box" in task.get_name()]


async def test_damage_before_the_first_look_counts_too() -> None:
    """As after a restart of the agent, when the event was published before anybody subscribed."""
    box = container()
    box.broken = "its cgroup was removed"
    assert (await unless_broken(runs_on(), box)).description == "container broken: its cgroup was removed"


async def test_a_container_that_is_destroyed_is_not_broken() -> None:
    """Its subscriptions end, and the course is waited for."""
    box, end = container(), asyncio.Event()

    async def ends_later() -> Exit:
        await end.wait()
        return ENDED

    course = asyncio.create_task(unless_broken(ends_later(), box))
    await asyncio.sleep(0.01)
    box.events.close()
    await asyncio.sleep(0.01)
    assert not course.done()
    end.set()
    assert await asyncio.wait_for(course, 5) == ENDED
