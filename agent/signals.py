"""Signals, from the first line of the program to its last: none is lost, and none ends it by the kernel's default.

`hold` blocks them before anything is imported; `Signals.listen` hands over what came meanwhile. An action that needs parts which
are not built yet is given later by `on`, and is carried out then.
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
    """They wait in the kernel. Also for the very end, when the loop's handlers are gone and the default would be back."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


class Signals:
    def __init__(self) -> None:
        self._actions: dict[signal.Signals, Callable[[], None]] = {}
        self._early: list[signal.Signals] = []

    def listen(self, loop: AbstractEventLoop) -> None:
        for number in HANDLED:
            loop.add_signal_handler(number, self._arrived, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def on(self, action: Callable[[], None], *numbers: signal.Signals) -> None:
        """What is to be done at one of ``numbers``; at once, if one has come already."""
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
