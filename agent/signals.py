"""Handles signals from the first line of the program to its last, so that none is lost and none kills it by default.

`hold` blocks them before anything is imported, and the kernel keeps them pending. `Signals.listen` unblocks them once the
event loop can receive them. A signal that arrives before its action is set with `on` is kept and acted on then.
"""

from __future__ import annotations

import signal
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Final

HANDLED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGHUP,
)


def hold() -> None:
    """Block the signals, so that they stay pending in the kernel. Also called at the very end, when the loop's handlers are
    removed and a signal would otherwise kill the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


class Signals:
    def __init__(self) -> None:
        self._actions: dict[signal.Signals, Callable[[], None]] = {}
        self._early: list[signal.Signals] = []

    def listen(self, loop: AbstractEventLoop) -> None:
        """Let ``loop`` receive the signals. They are unblocked only once their handlers exist."""
        for number in HANDLED:
            loop.add_signal_handler(number, self._arrived, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def on(self, action: Callable[[], None], *numbers: signal.Signals) -> None:
        """Call ``action`` at each signal of ``numbers``, and at once for each that has arrived already."""
        self._actions |= dict.fromkeys(numbers, action)
        came = [one for one in self._early if one in numbers]
        self._early = [one for one in self._early if one not in numbers]
        for _ in came:
            action()

    def _arrived(self, number: signal.Signals) -> None:
        action = self._actions.get(number)
        if action is None:
            self._early.append(number)
        else:
            action()
