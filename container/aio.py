"""Asyncio helpers that several modules need: waiting for descriptors, file watches, shielding, owned tasks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from container import linux

T = TypeVar("T")


class Log(Protocol):
    """The methods of a structlog logger that the library uses, to log decisions that it takes in the background."""

    def warning(self, event: str, *args: Any, **fields: Any) -> Any: ...

    def info(self, event: str, *args: Any, **fields: Any) -> Any: ...


class SilentLog:
    """A log that drops everything."""

    def warning(self, event: str, *args: Any, **fields: Any) -> None:
        return None

    def info(self, event: str, *args: Any, **fields: Any) -> None:
        return None


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def readable(fd: int) -> None:
    """Returns when ``fd`` has something to read or its other end is closed. One waiter for each descriptor."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def writable(fd: int) -> None:
    """Returns when ``fd`` can be written to. One waiter for each descriptor."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


async def finish(task: asyncio.Task[T]) -> T:
    """Waits for the task and returns its result.

    Cancelling the caller does not cancel the task. The CancelledError is raised once the task is done.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as e:
            if task.done():
                break
            cancelled = e
        except BaseException:
            if not task.done():
                raise
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # marked as retrieved: the caller gets CancelledError instead
        raise cancelled
    return task.result()


class Background:
    """Owns named tasks: logs those that fail, and waits for all of them in `close`."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], *, name: str, watched: bool = False) -> asyncio.Task[T]:
        """Starts a task. ``watched``: the caller awaits it, so its failure is not logged here."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._watched_done if watched else self._done)
        return task

    def _watched_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.warning("background_task_failed", task=task.get_name(), error=repr(error))

    async def close(self, timeout_s: float) -> None:
        """Waits for all tasks, and cancels those that are not done after ``timeout_s``."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


class FileWatcher:
    """Calls back after writes to files. All files share one inotify instance: by default a user may have only 128."""

    def __init__(self) -> None:
        self._fd = linux.inotify_open()
        self._watches: dict[int, list[Callable[[], None]]] = {}
        asyncio.get_running_loop().add_reader(self._fd, self._on_events)

    @contextmanager
    def watch(self, path: Path, on_change: Callable[[], None]) -> Generator[None, None, None]:
        """Inside the block ``on_change`` is called after each write (once for several writes in a row). OSError."""
        stop = self.start(path, on_change)
        try:
            yield
        finally:
            stop()

    def start(self, path: Path, on_change: Callable[[], None]) -> Callable[[], None]:
        """Calls ``on_change`` after each write, and when the file is removed. Returns the function that ends the watch.

        That function is idempotent. OSError: the file does not exist, or there are too many watches.
        """
        watch = linux.inotify_add(self._fd, str(path), linux.IN_MODIFY)
        callbacks = self._watches.setdefault(watch, [])
        callbacks.append(on_change)
        is_on = True

        def stop() -> None:
            nonlocal is_on
            if is_on:
                is_on = False
                callbacks.remove(on_change)
                # The kernel may have ended the watch (file removed) and given its number to another file since.
                if not callbacks and self._watches.get(watch) is callbacks:
                    del self._watches[watch]
                    if self._fd >= 0:
                        linux.inotify_remove(self._fd, watch)

        return stop

    def _on_events(self) -> None:
        for watch, mask in linux.inotify_events(self._fd):
            if mask & linux.IN_Q_OVERFLOW:
                for callback in [c for callbacks in self._watches.values() for c in callbacks]:
                    callback()
                continue
            for callback in tuple(self._watches.get(watch, ())):
                callback()
            if mask & linux.IN_IGNORED:
                self._watches.pop(watch, None)

    def close(self) -> None:
        """Ends all watches. Idempotent."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
