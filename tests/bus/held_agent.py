"""The agent, held at one point of every start: for talks that must meet it where nobody outside can see it.

    held_agent.py PHASE FLAG run --config FILE

The step itself is the agent's own; before (or after) it FLAG is made, and it goes on when FLAG is gone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agent.__main__ import main
from agent.droplets.unpacker import Feeding
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


def hold(phase: str, flag: Path) -> None:
    match phase:
        case "unpacking":  # the whole archive is with the worker
            Feeding.finish = held(Feeding.finish, flag)  # type: ignore[method-assign]
        case "creating":  # in the middle of the ladder: pid 1 waits for its network
            Networks.attach = held(Networks.attach, flag)  # type: ignore[method-assign]
        case "spawned":  # the app runs, nobody has looked at its port
            Container.spawn = held(Container.spawn, flag, after=True)  # type: ignore[method-assign]
        case _:
            raise SystemExit(f"no phase {phase!r}")


if __name__ == "__main__":
    _, phase, flag, *sys.argv[1:] = sys.argv
    hold(phase, Path(flag))
    sys.exit(main())
