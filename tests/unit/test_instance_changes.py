"""The stream of instance changes: what a reader gets, and what a slow one loses."""

from __future__ import annotations

import asyncio

import pytest

from agent.bus.messages import AppLimits, StartMessage
from agent.instances.changes import QUEUED, RESYNC, InstanceChanges
from agent.instances.instance import Instance, InstanceEvent
from agent.instances.registry import Registry

pytestmark = pytest.mark.unit


def instance(name: str = "i") -> Instance:
    message = StartMessage("app", "v", "name", 0, AppLimits(16, 32, 64), (), "default")
    return Instance(id=name, private_id="p", message=message, version="v", uris=())


async def test_each_kind_of_change_reaches_a_reader() -> None:
    """Added, another state, a remark, another id, removed: one change each, and each is counted."""
    registry, one = Registry(), instance()
    with registry.changes() as changes:
        registry.add(one)
        one.move(InstanceEvent.START, 1.0)
        registry.settle(one)
        registry.remark(one, 1.0, "a line")
        registry.rename(one, "other")
        registry.remove(one)
        async with asyncio.timeout(5):
            assert [await changes.next() for _ in range(5)] == [one] * 5
        assert not changes.has_unread()
    assert registry.change_count == 5


async def test_a_waiting_reader_wakes() -> None:
    """Also one that began to wait before there was a change."""
    registry, one = Registry(), instance()
    with registry.changes() as changes:
        waiting = asyncio.create_task(changes.next())
        await asyncio.sleep(0)
        registry.add(one)
        async with asyncio.timeout(5):
            assert await waiting is one


async def test_a_reader_of_one_instance_gets_its_changes_alone() -> None:
    """The others do not fill its queue."""
    registry, one, other = Registry(), instance(), instance("other")
    registry.add(one)
    with registry.changes(one) as changes:
        registry.add(other)
        assert not changes.has_unread()
        registry.remark(one, 1.0, "a line")
        assert await changes.next() is one


async def test_a_full_queue_becomes_one_resync() -> None:
    """What comes after it is kept again."""
    changes, one = InstanceChanges(), instance()
    for _ in range(QUEUED + 1):
        changes.put(one)
    changes.put(one)
    assert [await changes.next(), await changes.next()] == [RESYNC, one]
    assert not changes.has_unread()


def test_a_reader_that_has_left_gets_nothing() -> None:
    """Its queue is not filled any more."""
    registry, one = Registry(), instance()
    with registry.changes() as changes:
        pass
    registry.add(one)
    assert not changes.has_unread()
