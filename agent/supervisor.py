"""Runs the agent's background tasks, so that an error in one is logged and counted, and ends nothing else.

    every   calls a function at a period, and sooner when an event is set
    keep    runs a task that should never end, and restarts it after an error, with growing pauses
    start   runs a task once
    guard   a block within a task, for example one instance of many: its error does not end the rest

No background task can end the agent. Only an error of `Worker` itself does.
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
#: After an error, a task of `keep` that had run this long is restarted with the shortest pause again.
SOUND_S: Final = 60.0

Round = Callable[[], Awaitable[None] | None]
OnFailure = Callable[[BaseException], None]


class Supervisor:
    """An ``async with`` block around the life of the agent. At its end the tasks of `every` and `keep` are cancelled, and all
    tasks are waited for."""

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
        """The number of errors by the name of the task, since the agent began."""
        return dict(self._failures)

    def every(
        self,
        name: str,
        round_: Round,
        period_s: Callable[[], float],
        due: asyncio.Event | None = None,
    ) -> None:
        """Call ``round_`` after each period, or sooner when ``due`` is set. ``period_s`` is called before each wait, so the
        period may change."""
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
        """Run ``work``, and restart it after an error. If it returns, it is not restarted."""
        self._begin(self._keep(name, work), name)

    async def _keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began_s = time.monotonic()
            try:
                return await work()
            except Exception as e:  # the outermost frame of a task
                self._failed(name, e, {})
            if time.monotonic() - began_s > SOUND_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def start(
        self, name: str, work: Coroutine[Any, Any, None], on_failure: OnFailure | None = None, **fields: Any
    ) -> asyncio.Task[None]:
        """Run ``work`` once, as a task. After an error ``on_failure`` is called to clean up. ``fields`` go into the log event."""
        task = self._group.create_task(self._guarded(name, work, on_failure, fields), name=name)
        # a task that is cancelled before its first step never awaits the coroutine, which must be closed all the same
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
        except Exception as e:  # the outermost frame of a task
            self._failed(name, e, fields)
            if on_failure is not None:
                with self.guard(name, **fields):
                    on_failure(e)

    @contextlib.contextmanager
    def guard(self, name: str, **fields: Any) -> Iterator[None]:
        """Log an error of the block with ``fields``, count it, and do not raise it."""
        try:
            yield
        except Exception as e:  # any error, since the block's caller must continue
            self._failed(name, e, fields)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._group.create_task(work, name=name)
        self._endless.add(task)
        task.add_done_callback(self._endless.discard)

    def _failed(self, name: str, error: BaseException, fields: Mapping[str, Any]) -> None:
        """Log the error; with its traceback the 1st, 2nd, 4th, 8th... time, so that a lasting fault does not fill the disk."""
        self._failures[name] += 1
        count = self._failures[name]
        trace = error if count & (count - 1) == 0 else None
        self._log.error("task_failed", task=name, failures=count, error=repr(error), exc_info=trace, **fields)

    def _callback_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler: it gets errors of callbacks, and of tasks whose result nobody reads."""
        error = context.get("exception")
        if error is None:
            self._log.warning("event_loop_warning", error=str(context.get("message", "")))
        else:
            self._failed("callback", error, {"of": str(context.get("message", ""))})
