"""Runs an agent that stops, fails or kills itself at a chosen point, for tests of moments that cannot be seen from outside.

    held_agent.py PHASE FLAG run --config FILE

The step itself is the agent's own; before (or after) it FLAG is made, and it goes on when FLAG is gone. PHASE `faulty`: each
kind of background work that the text of FLAG names raises an error.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from agent import lives, upkeep
from agent.announce import Announcer
from agent.bus.outbox import Outbox, OutboxEntry
from agent.bus.sender import Sender
from agent.bus.wire import Connection
from agent.cli.app import main
from agent.droplets.unpacker import Feeding
from agent.instances.keeper import Keeper
from agent.memory.ahead import Memory
from agent.memory.store import INSTANCES, RecordStore
from agent.staging.keeper import StagingKeeper
from agent.worker import Worker
from container import Container, Depot
from container.network import Networks

Step = Callable[..., Awaitable[Any]]


def held(step: Step, flag: Path, *, after: bool = False) -> Step:
    async def hold() -> None:
        flag.touch()
        while flag.exists():
            await asyncio.sleep(0.01)

    async def held_step(*args: Any, **kwargs: Any) -> Any:
        if not after:
            await hold()
        result = await step(*args, **kwargs)
        if after:
            await hold()
        return result

    return held_step


#: Phase to the step that is held, and whether at its end.
PHASES: Mapping[str, tuple[type, str, bool]] = {
    "unpacking": (Feeding, "finish", False),  # the whole archive is with the worker
    "creating": (Networks, "attach", False),  # in the middle of the ladder: pid 1 waits for its network
    "spawned": (Container, "spawn", True),  # the app runs, nobody has looked at its port
}


class Broken(RuntimeError):
    pass


async def break_down(worker: Worker) -> None:
    raise Broken("on purpose")


#: Kind of work, as the log and the status name it, to a step that all work of the kind goes through.
FAULTS: Mapping[str, tuple[Any, str]] = {
    "stats": (upkeep, "sample"),
    "reaper": (Keeper, "reap_crashes"),
    "advertise": (Announcer, "_advertise"),
    "heartbeat": (Announcer, "_beat"),
    "routes": (Announcer, "_register"),
    "memory": (Memory, "save"),
    "bus": (Sender, "_take_batch"),
    "life": (lives, "live"),
    "staging": (StagingKeeper, "_live"),
    "destroy": (Depot, "destroy"),
}


def faulty(step: Callable[..., Any], name: str, flag: Path) -> Callable[..., Any]:
    """Wraps the step: it raises an error while FLAG names it."""

    def check() -> None:
        if flag.exists() and name in flag.read_text().split():
            raise Broken(f"{name} on purpose")

    if not inspect.iscoroutinefunction(step):

        def faulty_step(*args: Any, **kwargs: Any) -> Any:
            check()
            return step(*args, **kwargs)

        return faulty_step

    async def faulty_async_step(*args: Any, **kwargs: Any) -> Any:
        check()
        return await step(*args, **kwargs)

    return faulty_async_step


def killed_at(point: str, flag: Path) -> None:
    """The agent kills itself, once, at a point of its own work, as soon as FLAG is there.

    record=STATE        the record of an instance in STATE is on disk, and nothing else has followed
    outbox=SUBJECT      the outbox has an event, and it has not been published
    published=SUBJECT   the server has a message, and the agent has not noticed
    """
    where, _, what = point.partition("=")

    def die() -> None:
        if flag.exists():
            flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    write_record, write_event, publish = RecordStore.write, Outbox.write, Connection.publish

    def record(self: RecordStore, section: str, name: str, data: bytes | None) -> None:
        write_record(self, section, name, data)
        if section == INSTANCES and data is not None and json.loads(data)["state"] == what:
            die()

    def event(self: Outbox, entry: OutboxEntry) -> None:
        write_event(self, entry)
        if entry.kept.subject == what:
            die()

    async def message(self: Connection, subject: str, payload: bytes, reply: str = "") -> None:
        await publish(self, subject, payload, reply)
        if subject == what:
            await self.barrier()
            die()

    points: Mapping[str, tuple[type, str, Any]] = {
        "record": (RecordStore, "write", record),
        "outbox": (Outbox, "write", event),
        "published": (Connection, "publish", message),
    }
    owner, step, changed = points[where]
    setattr(owner, step, changed)


def hold(phase: str, flag: Path) -> None:
    if "=" in phase:
        killed_at(phase, flag)
        return
    if phase == "broken":  # something that the agent cannot do without, when FLAG is gone
        setattr(Worker, "_until_asked_to_end", held(break_down, flag))  # noqa: B010  (mypy: not to be assigned)
        return
    if phase == "faulty":
        for fault, (owner, step) in FAULTS.items():
            setattr(owner, step, faulty(getattr(owner, step), fault, flag))
        return
    kind, name, after = PHASES[phase]
    setattr(kind, name, held(getattr(kind, name), flag, after=after))


if __name__ == "__main__":
    _, phase, flag, *words = sys.argv
    hold(phase, Path(flag))
    sys.argv[1:] = words
    sys.exit(main())
