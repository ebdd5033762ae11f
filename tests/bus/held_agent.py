"""The agent, held at one point of every start: for talks that must meet it where nobody outside can see it. Or broken there.

    held_agent.py PHASE FLAG run --config FILE

The step itself is the agent's own; before (or after) it FLAG is made, and it goes on when FLAG is gone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from agent.cli.app import main
from agent.droplets.unpacker import Feeding
from agent.worker import Worker
from container import Container
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


async def break_down(worker: Worker) -> None:
    raise RuntimeError("broken on purpose")


def hold(phase: str, flag: Path) -> None:
    if phase == "broken":  # something that the agent cannot do without, when FLAG is gone
        setattr(Worker, "_reap_for_ever", held(break_down, flag))  # noqa: B010  (mypy: not to be assigned)
        return
    kind, name, after = PHASES[phase]
    setattr(kind, name, held(getattr(kind, name), flag, after=after))


if __name__ == "__main__":
    _, phase, flag, *words = sys.argv
    hold(phase, Path(flag))
    sys.argv[1:] = words
    sys.exit(main())
