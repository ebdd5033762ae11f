"""What has been taken, in order, and how each piece is given back.

As an `AsyncExitStack`, with one difference: a step that fails stays, with all below it, and the next `aclose` begins with it.
The steps below need the failed one done: an address whose link is still there, ids of a process that still runs, must
not have a new owner. So every step can be done twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ParamSpec

P = ParamSpec("P")


class UndoStack:
    """Steps are done in reverse, each once it has succeeded."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], Awaitable[None] | None]] = []

    def __len__(self) -> int:
        """How many are left to do."""
        return len(self._steps)

    def callback(self, step: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        def do() -> None:
            step(*args, **kwargs)

        self._steps.append(do)

    def push_async_callback(
        self, step: Callable[P, Awaitable[object]], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        async def do() -> None:
            await step(*args, **kwargs)

        self._steps.append(do)

    def pop_all(self) -> UndoStack:
        """Another stack that has the steps; this one has none then."""
        other = UndoStack()
        other._steps, self._steps = self._steps, []
        return other

    async def aclose(self) -> None:
        """Raises what a step raised; that step and those below it are left."""
        while self._steps:
            done = self._steps[-1]()
            if done is not None:
                await done
            self._steps.pop()
