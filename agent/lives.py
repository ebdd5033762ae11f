"""Begins the tasks of instances and stagings, and cancels them when the agent ends.

An error that ends the task of an instance affects only that instance: its container is destroyed, and its exit is published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from agent.bus.messages import StartMessage
from agent.instances.instance import LIFE_BROKE, Exit, Instance, InstanceEvent
from agent.instances.keeper import Keeper
from agent.instances.launch import FAILED
from agent.instances.life import live
from agent.instances.parts import LifeParts
from agent.supervisor import Supervisor


async def wait_for_tasks(tasks: set[asyncio.Task[None]], timeout_s: float) -> None:
    """Wait until all ``tasks`` have ended, at most ``timeout_s`` seconds."""
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s)


class Lives:
    """Begins the task of each instance and each staging."""

    def __init__(self, parts: LifeParts, supervisor: Supervisor) -> None:
        self._parts = parts
        self._supervisor = supervisor
        self._instances: dict[Instance, asyncio.Task[None]] = {}
        self._stagings: set[asyncio.Task[None]] = set()

    def begin(self, instance: Instance) -> None:
        """Begin the task of an instance that was just added to the registry."""
        task = self._supervisor.start(
            "life",
            live(instance, self._parts),
            lambda _: self._broke(instance),
            app=instance.app,
            instance=instance.id,
        )
        self._instances[instance] = task
        task.add_done_callback(lambda _: self._instances.pop(instance, None))

    def _broke(self, instance: Instance) -> None:
        parts = self._parts
        if instance.handle is not None:
            self._supervisor.start("destroy", parts.depot.destroy(instance.handle), handle=instance.handle)
        if (event := LIFE_BROKE.get(instance.state)) is not None:
            instance.exit = Exit(-1, FAILED if event is not InstanceEvent.EXITED else "unknown")
            instance.crashed_at_s = int(parts.clock())
            parts.happen(instance, event)

    def begin_staging(self, task_id: str, life: Coroutine[None, None, None]) -> None:
        task = self._supervisor.start("staging", life, task_id=task_id)
        self._stagings.add(task)
        task.add_done_callback(self._stagings.discard)

    def of_instances(self) -> set[asyncio.Task[None]]:
        return set(self._instances.values())

    def of_stagings(self) -> set[asyncio.Task[None]]:
        return set(self._stagings)

    def cancel(self) -> None:
        """Cancel all tasks, without waiting for their ends."""
        for task in (*self._instances.values(), *self._stagings):
            task.cancel()


class Starter:
    """Starts an instance, for a command of the bus or after a staging that succeeded."""

    def __init__(self, keeper: Keeper, lives: Lives) -> None:
        self._keeper = keeper
        self._lives = lives

    def __call__(self, message: StartMessage) -> None:
        """Register an instance and begin its task, unless the keeper refuses the message."""
        if (instance := self._keeper.start(message)) is not None:
            self._lives.begin(instance)
