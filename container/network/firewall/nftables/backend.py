"""The nftables back end: text.py's texts, applied by one worker thread that owns the library's context."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from container import linux
from container.network.firewall import FirewallError
from container.network.firewall.nftables.library import LIBRARY, Context
from container.network.firewall.nftables.text import Tables
from container.network.firewall.transactions import TransactionWatch, told
from container.network.policy import Policy, Ruleset, changed


class Nftables:
    """Implements `Firewall`. One thread, started by the first change.

    The kernel reports each transaction with the name of the thread that made it. So the thread has a random name, by
    which the watch knows our own changes. Its number would not do: it differs from one pid namespace to another.
    """

    sees_true_gateway = False
    can_shape = True

    def __init__(self, table: str, library: str = LIBRARY) -> None:
        """``table``: the name of the depot's tables."""
        self._text = Tables(table)
        self._author = f"nft-{secrets.token_hex(5)}"
        self._library = library
        self._context: Context | None = None
        self._worker = ThreadPoolExecutor(
            1, thread_name_prefix="nftables", initializer=linux.name_thread, initargs=(self._author,)
        )

    async def ensure(self, policy: Policy) -> bool:
        try:
            await self.apply(self._text.probe())
        except FirewallError:
            await self.apply(self._text.base(policy))
            return True
        return False

    async def commit(self, before: Ruleset, after: Ruleset) -> None:
        await self.apply(self._text.change(changed(before, after)))

    async def replace(self, ruleset: Ruleset, interfaces: Collection[str]) -> None:
        await self.apply(self._text.whole(ruleset, interfaces))

    def foreign_changes(self, on_change: Callable[[str], None]) -> Callable[[], None]:
        def on_transaction(name: str, pid: int) -> None:
            if name != self._author:
                on_change(told(name, pid))

        table = self._text.table
        return TransactionWatch(
            asyncio.get_running_loop(), lambda _, name: name == table, on_transaction
        ).close

    async def remove(self) -> None:
        await self.apply(self._text.remove())

    async def apply(self, commands: str) -> None:
        """All of ``commands`` (nft(8)) or nothing. FirewallError: the kernel refused."""
        await asyncio.get_running_loop().run_in_executor(self._worker, self._run, commands)

    def _run(self, commands: str) -> None:
        if self._context is None:
            self._context = Context(self._library)
        self._context.run(commands)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, self._free)
        self._worker.shutdown()

    def _free(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None
