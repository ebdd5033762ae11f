"""Owner of everything that runs in the background: an error costs its own round or instance, is logged and is counted.

    every   a round at its period, and whenever it is asked for sooner
    keep    what should never end; begun again after an error, ever later
    start   one piece of work
    guard   a part of a round, so that one instance's error is not the others'

What the agent cannot do without is not decided here: only an error of `Worker` itself ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Final

from agent.logs import Log

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0
#: A service that ran so long before its error begins with the shortest pause again.
SOUND_S: Final = 60.0

Round = Callable[[], Awaitable[None] | None]
OnFailure = Callable[[BaseException], None]


class Supervisor:
    """``async with`` around the life of the agent: at its end what still runs is cancelled and waited for."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._group = asyncio.TaskGroup()
        self._endless: set[asyncio.Task[None]] = set()
        self._failures: Counter[str] = Counter()

    async def __aenter__(self) -> Supervisor:
        asyncio.get_running_loop().set_exception_handler(self._callback_failed)
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._endless:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    @property
    def failures(self) -> Mapping[str, int]:
        """How often each kind of work has failed in this life of the agent."""
        return dict(self._failures)

    def every(
        self,
        name: str,
        round_: Round,
        period_s: Callable[[], float],
        due: asyncio.Event | None = None,
    ) -> None:
        """``round_`` after each period, asked for anew each time, or when ``due`` is set."""
        self._begin(self._repeat(name, round_, period_s, due or asyncio.Event()), name)

    async def _repeat(
        self, name: str, round_: Round, period_s: Callable[[], float], due: asyncio.Event
    ) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period_s()):
                    await due.wait()
            due.clear()
            with self.guard(name):
                work = round_()
                if inspect.isawaitable(work):
                    await work

    def keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Work without an end. One that returns has come to it on purpose."""
        self._begin(self._keep(name, work), name)

    async def _keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began_s = time.monotonic()
            try:
                return await work()
            except Exception as e:  # the outermost frame of a service
                self._failed(name, e, {})
            if time.monotonic() - began_s > SOUND_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def start(
        self, name: str, work: Coroutine[Any, Any, None], on_failure: OnFailure | None = None, **fields: Any
    ) -> asyncio.Task[None]:
        """One piece of work; ``on_failure`` sets right what its error leaves, ``fields`` say whose it was."""
        task = self._group.create_task(self._guarded(name, work, on_failure, fields), name=name)
        # cancelled before its first turn, the wrapper never reaches the work, which nobody would close
        task.add_done_callback(lambda _: work.close())
        return task

    async def _guarded(
        self,
        name: str,
        work: Coroutine[Any, Any, None],
        on_failure: OnFailure | None,
        fields: Mapping[str, Any],
    ) -> None:
        try:
            await work
        except Exception as e:  # the outermost frame of a piece of work
            self._failed(name, e, fields)
            if on_failure is not None:
                with self.guard(name, **fields):
                    on_failure(e)

    @contextlib.contextmanager
    def guard(self, name: str, **fields: Any) -> Iterator[None]:
        """An error of the block is logged with ``fields``, counted, and goes no further."""
        try:
            yield
        except Exception as e:  # that is what it is for
            self._failed(name, e, fields)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._group.create_task(work, name=name)
        self._endless.add(task)
        task.add_done_callback(self._endless.discard)

    def _failed(self, name: str, error: BaseException, fields: Mapping[str, Any]) -> None:
        """With its traceback the first time, the second, the fourth...: a fault that stays does not fill the disk."""
        self._failures[name] += 1
        count = self._failures[name]
        trace = error if count & (count - 1) == 0 else None
        self._log.error("task_failed", task=name, failures=count, error=repr(error), exc_info=trace, **fields)

    def _callback_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback of the loop has nobody above it; a task that nobody looks at neither."""
        error = context.get("exception")
        if error is None:
            self._log.warning("loop_complains", error=str(context.get("message", "")))
        else:
            self._failed("callback", error, {"of": str(context.get("message", ""))})
