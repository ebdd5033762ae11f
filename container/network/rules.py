"""The rules that the firewall holds, and the transactions that change them.

Invariant: ``held`` is the ruleset that the kernel accepted last. A change computes a new ruleset from it, asks the
firewall to commit the difference, and only then puts the new one in its place. So there is nothing to undo after a
refusal, and everything can be written anew at any time: after a restart, and after others flushed the firewall.

Changes that arrive while a transaction runs wait and go together in the next one; forty cost little more than one. When
the kernel refuses a batch, each change of it is tried alone, so that only the wrong one fails. When it refuses a single
change, everything is written anew with that change in it: the kernel may not hold what it should, because somebody has
flushed it a moment ago (docs/network.md, "When others change the firewall").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from container.aio import Background, Log
from container.network.firewall import Firewall, FirewallError
from container.network.link import exists
from container.network.policy import Ruleset

Change = Callable[[Ruleset], Ruleset]
_RETRY_S: Final = 1.0


@dataclass(slots=True)
class _Waiting:
    """A change that waits for its transaction. ``anew``: everything is to be written anew with it."""

    change: Change
    anew: bool
    done: asyncio.Future[None]


class HeldRules:
    """``firewall`` is watched from here on: what others change is written anew. Until `stop_watching`."""

    def __init__(self, held: Ruleset, firewall: Firewall, background: Background, log: Log) -> None:
        self.held = held
        self._firewall, self._background, self._log = firewall, background, log
        self._waiting: list[_Waiting] = []
        self._committing = False
        self._restoring = False
        #: What others change from then on is left as it is.
        self.stop_watching = firewall.foreign_changes(self._on_foreign_change)

    async def change(self, change: Change, *, anew: bool = False) -> None:
        """Returns when the kernel has accepted the change; also one whose caller is cancelled is made.

        ``anew``: everything is written anew. FirewallError: refused, and nothing of the change holds.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(change, anew, done))
        if not self._committing:
            self._committing = True
            self._background.start(self._commit_waiting(), name="firewall")
        await asyncio.shield(done)

    async def _commit_waiting(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._commit(batch)
        finally:
            self._committing = False

    async def _commit(self, batch: list[_Waiting]) -> None:
        try:
            held = self.held
            for one in batch:
                held = one.change(held)
            if any(one.anew for one in batch):
                await self._make_anew(held)
            else:
                await self._firewall.commit(self.held, held)
        except Exception as e:
            if len(batch) == 1:
                await self._commit_anew(batch[0], because=e)
                return
            for one in batch:  # one of them is wrong, and only that one is to fail
                await self._commit([one])
            return
        self.held = held
        for one in batch:
            one.done.set_result(None)

    async def _commit_anew(self, one: _Waiting, because: Exception) -> None:
        """Perhaps the kernel does not hold ``_held``, because others have just flushed it. Then everything anew is accepted."""
        try:
            held = one.change(self.held)
            await self._make_anew(held)
        except Exception:
            one.done.set_exception(because)
            return
        self._log.warning("firewall_was_not_as_left", error=str(because), containers=len(held))
        self.held = held
        one.done.set_result(None)

    async def _make_anew(self, held: Ruleset) -> None:
        """Tried again when an interface has gone meanwhile: some kernels refuse rules for one that does not exist."""
        while True:
            interfaces = _existing(held)
            try:
                return await self._firewall.replace(held, interfaces)
            except FirewallError:
                if interfaces == _existing(held):
                    raise

    def _on_foreign_change(self, culprit: str) -> None:
        self._log.warning("firewall_changed_by_others_restoring", by=culprit, containers=len(self.held))
        if not self._restoring:
            self._restoring = True
            self._background.start(self._restore_rules(), name="firewall-restore")

    async def _restore_rules(self) -> None:
        """Until it is done: without our rules every container is cut off."""

        def unchanged(held: Ruleset) -> Ruleset:
            self._restoring = False  # this transaction does not undo what others change from here on
            return held

        while True:
            try:
                await self.change(unchanged, anew=True)
                break
            except Exception as e:  # whatever it was: given up, it would never be tried again
                self._log.warning("firewall_not_restored_retrying", error=repr(e), after_s=_RETRY_S)
                await asyncio.sleep(_RETRY_S)
        self._log.info("firewall_restored", containers=len(self.held))


def _existing(held: Ruleset) -> frozenset[str]:
    return frozenset(interface for interface in held.interfaces if exists(interface))
