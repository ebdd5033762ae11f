"""Notices that somebody has changed tables in which we have rules. Whether it was our part, backend.py finds out.

The nft variant's tables are nftables' own, and the kernel reports each of their transactions with its author. Of the legacy
variant nothing is reported, so the number and size of each table's entries are asked for periodically.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from container import linux
from container.network.firewall.iptables.programs import Variant
from container.network.firewall.iptables.text import TABLES
from container.network.firewall.transactions import TransactionWatch, told

_PERIOD_S: Final = 1.0
#: A change that leaves number and size as they were is found by looking at everything so often.
_LOOK_PERIODS: Final = 10


def watch(variant: Variant, on_change: Callable[[str], None]) -> Callable[[], None]:
    """Calls ``on_change`` in the running loop with who it was, or why that is not known. Returns what ends it. OSError."""
    loop = asyncio.get_running_loop()
    if variant == "nft":

        def concerns(family: int, table: str) -> bool:
            return family == socket.AF_INET and table in TABLES

        return TransactionWatch(loop, concerns, lambda name, pid: on_change(told(name, pid))).close
    return _LegacyWatch(loop, on_change).close


class _LegacyWatch:
    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[str], None]) -> None:
        self._loop, self._on_change = loop, on_change
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW
        )
        self._seen = self._look()
        self._periods = 0
        self._timer = loop.call_later(_PERIOD_S, self._ask)

    def _look(self) -> list[tuple[int, int]]:
        """Number and bytes of the entries, by table; (0, 0): there is no such table."""
        return [self._info(table) for table in TABLES]

    def _info(self, table: str) -> tuple[int, int]:
        try:
            return linux.legacy_table_size(self._socket.fileno(), table)
        except OSError:
            return 0, 0

    def _ask(self) -> None:
        self._timer = self._loop.call_later(_PERIOD_S, self._ask)
        self._periods += 1
        seen = self._look()
        if seen != self._seen or self._periods >= _LOOK_PERIODS:
            self._seen, self._periods = seen, 0
            self._on_change("unknown: iptables-legacy names nobody")

    def close(self) -> None:
        self._timer.cancel()
        self._socket.close()
