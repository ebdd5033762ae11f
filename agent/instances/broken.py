"""The end of an instance whose container others have damaged: it is a crash, although its process runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

from agent.depot import AgentContainer
from agent.instances.instance import Exit

DESCRIPTION = "container broken: {}"


async def unless_broken(course: Coroutine[Any, Any, Exit], container: AgentContainer) -> Exit:
    """Runs the course of an instance to its end, or until its container is broken. If both have happened, the course counts.

    Raises what the course raises.
    """
    ending = asyncio.create_task(course, name=f"ending-{container.handle[:8]}")
    damage = asyncio.create_task(_damage(container), name=f"damage-{container.handle[:8]}")
    try:
        await asyncio.wait({ending, damage}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done() and (piece := damage.result()):
            return Exit(-1, DESCRIPTION.format(piece))
        return await ending
    finally:
        for task in (ending, damage):
            task.cancel()
        await asyncio.gather(ending, damage, return_exceptions=True)


async def _damage(container: AgentContainer) -> str:
    """Returns which piece is gone. Empty: the container was destroyed before that."""
    async with aclosing(container.events.subscribe()) as events:
        while not container.broken:
            # The subscription begins with this step, and nothing runs between the look and it.
            if await anext(events, None) is None:
                return ""
    return container.broken
