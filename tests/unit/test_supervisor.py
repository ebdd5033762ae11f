"""Background work: what an error costs, and that it is seen."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from structlog.testing import CapturingLogger

from agent import supervisor as supervisor_module
from agent.signals import HANDLED, Signals, hold
from agent.supervisor import Supervisor

pytestmark = pytest.mark.unit


class Log:
    """A logger and what it was given."""

    def __init__(self) -> None:
        self.kept = CapturingLogger()
        self.log: Any = structlog.wrap_logger(self.kept, processors=[])

    def failed(self) -> list[tuple[str, int, bool]]:
        """Task, number of the failure, whether it had a traceback."""
        return [
            (call.kwargs["task"], call.kwargs["failures"], call.kwargs["exc_info"] is not None)
            for call in self.kept.calls
            if call.args == ("task_failed",) or call.kwargs.get("event") == "task_failed"
        ]


def raising(times: int, then: Callable[[], None]) -> Callable[[], None]:
    """Raises the first ``times``, then calls ``then``."""
    count = 0

    def round_() -> None:
        nonlocal count
        count += 1
        if count <= times:
            raise ValueError(count)
        then()

    return round_


async def test_a_round_that_raises_costs_itself_only() -> None:
    """The next one comes at its time; the traceback of the first, second and fourth is enough."""
    log, done = Log(), asyncio.Event()
    async with Supervisor(log.log) as supervised:
        supervised.every("round", raising(5, done.set), lambda: 0.001)
        await asyncio.wait_for(done.wait(), 10)

    assert log.failed() == [("round", n, n in (1, 2, 4)) for n in range(1, 6)]
    assert supervised.failures == {"round": 5}


async def test_a_round_that_waits_is_awaited_and_comes_when_asked_for() -> None:
    """Long before its period is over."""
    log, done, due = Log(), asyncio.Event(), asyncio.Event()

    async def round_() -> None:
        await asyncio.sleep(0)
        done.set()

    async with Supervisor(log.log) as supervised:
        supervised.every("round", round_, lambda: 3600.0, due)
        await asyncio.sleep(0)
        assert not done.is_set()
        due.set()
        await asyncio.wait_for(done.wait(), 10)
    assert supervised.failures == {}


async def test_a_service_is_begun_again_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that returns has come to its end."""
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE_S", 0.001)
    log, done = Log(), asyncio.Event()
    step = raising(3, done.set)

    async def service() -> None:
        step()

    async with Supervisor(log.log) as supervised:
        supervised.keep("service", service)
        await asyncio.wait_for(done.wait(), 10)
    assert supervised.failures == {"service": 3}


async def test_a_piece_of_work_that_raises_is_set_right_by_its_owner() -> None:
    """And an error of the setting right is one more, no more."""
    log, seen = Log(), []

    async def work() -> None:
        raise ValueError("first")

    def set_right(error: BaseException) -> None:
        seen.append(str(error))
        raise ValueError("second")

    async with Supervisor(log.log) as supervised:
        task = supervised.start("work", work(), set_right, app="shop")
        await task
    assert seen == ["first"]
    assert supervised.failures == {"work": 2}
    assert {call.kwargs["app"] for call in log.kept.calls} == {"shop"}


async def test_one_instances_error_is_not_the_others() -> None:
    """A part of a round is guarded by itself."""
    log, reached = Log(), []
    supervised = Supervisor(log.log)
    for number in range(3):
        with supervised.guard("stats", instance=number):
            if number == 1:
                raise RuntimeError("being destroyed")
            reached.append(number)
    assert reached == [0, 2]
    assert supervised.failures == {"stats": 1}


async def test_an_error_in_a_callback_of_the_loop_is_counted_too() -> None:
    """Nobody awaits a callback; asyncio's own line would go to standard error."""
    log = Log()

    def callback() -> None:
        raise ValueError("in a callback")

    async with Supervisor(log.log) as supervised:
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0.01)
    assert supervised.failures == {"callback": 1}


async def test_work_that_is_cancelled_before_its_first_turn_is_closed(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Else Python complains of a coroutine that nobody awaited."""

    async def work() -> None:
        raise AssertionError("never begun")

    async with Supervisor(Log().log) as supervised:
        supervised.start("work", work()).cancel()
    assert [str(one.message) for one in recwarn if "never awaited" in str(one.message)] == []


async def test_the_end_takes_what_has_no_end_along_and_an_error_of_the_body_comes_out() -> None:
    """That alone ends the agent."""

    async def body() -> None:
        async with Supervisor(Log().log) as supervised:
            supervised.every("round", lambda: None, lambda: 3600.0)
            raise ValueError("of the body")

    with pytest.raises(ExceptionGroup) as broke:
        await body()
    assert [repr(one) for one in broke.value.exceptions] == ["ValueError('of the body')"]


async def test_a_signal_that_came_too_early_is_carried_out_when_it_can_be() -> None:
    """Blocked before there is a loop, kept until there is an action; each once, in the end blocked again."""
    done: list[str] = []
    hold()
    try:
        for number in (signal.SIGUSR1, signal.SIGHUP):
            os.kill(os.getpid(), number)  # pending: the default would end this process
        signals = Signals()
        signals.listen(asyncio.get_running_loop())
        signals.on(lambda: done.append("hup"), signal.SIGHUP)
        await asyncio.sleep(0.05)
        assert done == ["hup"]

        signals.on(lambda: done.append("usr1"), signal.SIGUSR1)
        assert done == ["hup", "usr1"]
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.sleep(0.05)
        assert done == ["hup", "usr1", "usr1"]
    finally:
        loop = asyncio.get_running_loop()
        for number in HANDLED:
            loop.remove_signal_handler(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


async def test_what_is_due_comes_once() -> None:
    """Sooner than its period; then the period counts again."""
    due, rounds, first = asyncio.Event(), list[int](), asyncio.Event()

    def round_() -> None:
        rounds.append(1)
        first.set()

    async with Supervisor(Log().log) as supervised:
        supervised.every("round", round_, lambda: 1000.0, due)
        due.set()
        await asyncio.wait_for(first.wait(), 10)
        for _ in range(20):
            await asyncio.sleep(0)
    assert rounds == [1]


async def test_a_complaint_of_the_loop_without_an_error_is_a_warning() -> None:
    """It is nobody's failure, so it is not counted."""
    log = Log()
    async with Supervisor(log.log) as supervised:
        asyncio.get_running_loop().call_exception_handler({"message": "a transport was not closed"})
    assert supervised.failures == {}
    assert [call.kwargs["error"] for call in log.kept.calls if call.method_name == "warning"] == [
        "a transport was not closed"
    ]
