"""The iptables back end: text.py's lines, run by programs.py, with the policies of xfrm.py.

iptables makes one transaction a table and none across tables. So the order of the tables matters: what opens is written
into mangle last, and what closes into mangle first. When a table refuses its part, everything is written as it was before.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from typing import Final

from container.network.firewall import FirewallError
from container.network.firewall.iptables import xfrm
from container.network.firewall.iptables.programs import Programs, Variant
from container.network.firewall.iptables.text import (
    TABLES,
    Chains,
    Rules,
    anew,
    change,
    ours,
    pools_of,
    prefix_of,
    restore,
)
from container.network.firewall.iptables.watch import watch
from container.network.policy import Policy, Ruleset, changed

#: How long changes of others are gathered before the kernel's rules are compared with ours.
_GATHER_S: Final = 0.03


class Iptables:
    """Implements `Firewall`. ``table``: the depot's name for its tables; chains begin with it.

    FirewallError, from the constructor: the variant's programs are not installed.
    """

    sees_true_gateway = True
    can_shape = False

    def __init__(self, variant: Variant, table: str) -> None:
        self._prefix = prefix_of(table)
        self._programs = Programs(variant)
        self._turn = asyncio.Lock()
        self._chains: Chains | None = None
        self._expected: tuple[str, dict[str, Rules]] | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._suspected = ""

    async def ensure(self, policy: Policy) -> bool:
        async with self._turn:
            found = ours(await self._programs.save(), self._prefix)
            if all(found[table].jumps for table in TABLES):
                return False
            await self._write_anew(Ruleset(policy), found)
            return True

    async def commit(self, before: Ruleset, after: Ruleset) -> None:
        _check_ports(after)
        chains = self._chains_of(after.policy)
        old, new = chains.whole(before), chains.whole(after)
        lines = {table: change(old[table], new[table]) for table in TABLES}
        closes_first = bool(changed(before, after).removed)
        order = reversed(TABLES) if closes_first else TABLES
        async with self._turn:
            try:
                await self._programs.restore(restore({table: lines[table] for table in order}))
            except FirewallError:
                await self._write_anew(before, ours(await self._programs.save(), self._prefix))
                raise
            self._expected = (after.policy.pool_network, new)

    async def replace(self, ruleset: Ruleset, interfaces: Collection[str]) -> None:
        _check_ports(ruleset)
        async with self._turn:
            await self._write_anew(ruleset, ours(await self._programs.save(), self._prefix))

    async def _write_anew(self, ruleset: Ruleset, found: dict[str, Rules]) -> None:
        """The policies come first: with them and without rules everything is closed."""
        policy = ruleset.policy
        await asyncio.to_thread(xfrm.close_pool, policy.pool_network)
        wanted = self._chains_of(policy).whole(ruleset)
        await self._programs.restore(restore({table: anew(wanted[table], found[table]) for table in TABLES}))
        self._expected = (policy.pool_network, wanted)

    def _chains_of(self, policy: Policy) -> Chains:
        if self._chains is None or self._chains.policy != policy:
            self._chains = Chains(self._prefix, policy)
        return self._chains

    def foreign_changes(self, on_change: Callable[[str], None]) -> Callable[[], None]:
        loop = asyncio.get_running_loop()

        def suspect(who: str) -> None:
            self._suspected = who
            if self._comparing is None or self._comparing.done():
                self._comparing = loop.create_task(
                    self._compare_while_suspected(on_change), name="iptables-compare"
                )

        end_tables = watch(self._programs.variant, suspect)
        policies = xfrm.PolicyWatch(loop, suspect)

        def end() -> None:
            end_tables()
            policies.close()
            self._stop_comparing()

        return end

    def _stop_comparing(self) -> None:
        if self._comparing is not None:
            self._comparing.cancel()

    async def _compare_while_suspected(self, on_change: Callable[[str], None]) -> None:
        """A change that comes during a comparison may not be in it, so it is followed by another one."""
        while self._suspected:
            await asyncio.sleep(_GATHER_S)
            who, self._suspected = self._suspected, ""
            await self._compare(who, on_change)

    async def _compare(self, who: str, on_change: Callable[[str], None]) -> None:
        """Others change these tables too; only a change of our part is one for the caller."""
        async with self._turn:
            if self._expected is None:
                return
            pool, expected = self._expected
            try:
                found = ours(await self._programs.save(), self._prefix)
                same = _is_same(found, expected) and await asyncio.to_thread(xfrm.is_closed, pool)
            except FirewallError as e:
                same, who = False, f"unknown: {e}"
        if not same:
            on_change(who)

    async def remove(self) -> None:
        async with self._turn:
            found = ours(await self._programs.save(), self._prefix)
            lines = {table: anew(Rules(), found[table]) for table in reversed(TABLES)}
            if any(lines.values()):
                await self._programs.restore(restore(lines))
            pools = pools_of(found) | ({self._expected[0]} if self._expected is not None else set())
            for pool in pools:
                await asyncio.to_thread(xfrm.open_pool, pool)
            self._expected = None

    async def close(self) -> None:
        self._stop_comparing()


def _is_same(found: dict[str, Rules], expected: dict[str, Rules]) -> bool:
    return all(
        found[table].chains == rules.chains and found[table].jumps == rules.jumps
        for table, rules in expected.items()
    )


def _check_ports(ruleset: Ruleset) -> None:
    """FirewallError: a port leads to two containers. iptables itself would take both, and the first would win."""
    used = Counter(
        (mapping.protocol, mapping.host_port) for link in ruleset.links.values() for mapping in link.ports
    )
    for (protocol, port), count in used.items():
        if count > 1:
            raise FirewallError(f"iptables: port {port}/{protocol.value}: published already")
