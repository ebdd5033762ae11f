"""Who may download now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from agent.droplets.slots import FairSlots

pytestmark = pytest.mark.unit


class Crowd:
    """Downloads that hold their slots until they are told to end; ``running``: owners, in the order of their beginning."""

    def __init__(self, count: int) -> None:
        self.slots = FairSlots(count)
        self.running: list[str] = []
        self._ends: list[tuple[str, asyncio.Event, asyncio.Task[None]]] = []

    def begin(self, owner: str) -> asyncio.Task[None]:
        end = asyncio.Event()

        async def download() -> None:
            async with self.slots.taken(owner):
                self.running.append(owner)
                try:
                    await end.wait()
                finally:
                    self.running.remove(owner)

        task = asyncio.ensure_future(download())
        self._ends.append((owner, end, task))
        return task

    async def end(self, *, of: Callable[[str], bool] = lambda _: True) -> None:
        """The oldest that runs."""
        for one in self._ends:
            owner, end, _ = one
            if owner in self.running and of(owner):
                self._ends.remove(one)
                end.set()
                break
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_app_has_half_of_the_slots_and_the_others_find_room() -> None:
    """However many droplets of it trickle."""
    crowd = Crowd(8)
    for _ in range(20):
        crowd.begin("trickles")
    await settle()
    assert crowd.running == ["trickles"] * 4

    crowd.begin("other")
    await settle()
    assert crowd.running == ["trickles"] * 4 + ["other"]


async def test_those_that_wait_have_their_turn_app_by_app() -> None:
    """An app that came with ten does not go before one that came with one."""
    crowd = Crowd(2)
    for owner in ("a", "b", "a", "a", "a", "c"):
        crowd.begin(owner)
    await settle()
    assert crowd.running == ["a", "b"]
    await crowd.end(of=lambda owner: owner == "b")
    assert crowd.running == ["a", "c"]
    await crowd.end(of=lambda owner: owner == "a")
    assert sorted(crowd.running) == ["a", "c"]


async def test_a_single_slot_is_everybodys() -> None:
    """Half of one is one."""
    crowd = Crowd(1)
    for owner in ("a", "b"):
        crowd.begin(owner)
    await settle()
    assert crowd.running == ["a"]
    await crowd.end()
    assert crowd.running == ["b"]


async def test_who_goes_away_while_waiting_or_running_leaves_no_slot_behind() -> None:
    """Also one that is cancelled at the moment in which it was given its slot."""
    crowd = Crowd(1)
    first, waits, third = crowd.begin("a"), crowd.begin("b"), crowd.begin("c")
    await settle()
    waits.cancel()
    await settle()
    first.cancel()
    await asyncio.sleep(0)  # its slot is given to the third, which has not had its turn yet
    third.cancel()
    await settle()
    assert crowd.running == []
    crowd.begin("d")
    await settle()
    assert crowd.running == ["d"]


async def test_one_that_gives_up_while_it_waits_costs_no_slot() -> None:
    """Its turn is not kept for it, and the next of its owner has it."""
    crowd = Crowd(1)
    crowd.begin("a")
    await settle()
    gone = crowd.begin("b")
    crowd.begin("b")
    await settle()
    gone.cancel()
    await settle()
    assert crowd.slots._waiting["b"], "the second of it still waits"

    await crowd.end()
    assert crowd.running == ["b"]
    for _ in range(2):  # the one that gave up is counted by the crowd still
        await crowd.end()
    assert (crowd.slots._free, crowd.slots._waiting, dict(crowd.slots._held)) == (1, {}, {})


async def test_one_that_gives_up_as_its_turn_comes_gives_the_slot_on() -> None:
    """Both happen in one turn of the loop, in either order."""
    for cancelled_first in (True, False):
        crowd = Crowd(1)
        holder = crowd.begin("a")
        await settle()
        gone, next_one = crowd.begin("b"), crowd.begin("c")
        await settle()
        for task in (gone, holder) if cancelled_first else (holder, gone):
            task.cancel()
        await settle()
        assert crowd.running == ["c"]
        next_one.cancel()
        await settle()
        assert (crowd.slots._free, crowd.slots._waiting, dict(crowd.slots._held)) == (1, {}, {})
