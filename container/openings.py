"""The openings of a container's network: its published ports and its egress rules, changed one at a time.

A change runs to its end also if its caller is cancelled, so the firewall, the container's own list and the snapshot agree.
Changes of one container wait for each other: each builds on the list that the former one has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from container.aio import finish
from container.body import Body
from container.network import Link
from container.parts import Action, NoSuchRule, WrongState
from container.spec import EgressRule, PortMapping

T = TypeVar("T")


class Openings:
    """What `Container` offers under the same names. Their errors are documented there."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._turn = asyncio.Lock()

    async def net_in(self, mapping: PortMapping) -> PortMapping:
        async def publish(link: Link) -> PortMapping:
            resolved = await self._body.networks.publish(link, mapping)
            self._keep_ports((*self._body.parts.ports, resolved))
            return resolved

        return await self._whole(publish)

    async def remove_net_in(self, mapping: PortMapping) -> None:
        async def unpublish(link: Link) -> None:
            ports = self._body.parts.ports
            if mapping not in ports:
                raise NoSuchRule(f"container {self._body.handle}: does not publish {mapping}")
            await self._body.networks.unpublish(link, mapping)
            self._keep_ports(tuple(one for one in ports if one != mapping))

        await self._whole(unpublish)

    async def net_out(self, rule: EgressRule) -> None:
        async def permit(link: Link) -> None:
            await self._set_egress(link, (*self._body.parts.egress, rule))

        await self._whole(permit)

    async def remove_net_out(self, rule: EgressRule) -> None:
        async def forbid(link: Link) -> None:
            rules = list(self._body.parts.egress)
            if rule not in rules:
                raise NoSuchRule(f"container {self._body.handle}: has no egress rule {rule}")
            del rules[len(rules) - 1 - rules[::-1].index(rule)]
            await self._set_egress(link, rules)

        await self._whole(forbid)

    async def _set_egress(self, link: Link, rules: Sequence[EgressRule]) -> None:
        await self._body.networks.set_egress(link, rules)
        self._body.parts.egress = tuple(rules)
        self._body.save()

    def _keep_ports(self, ports: tuple[PortMapping, ...]) -> None:
        self._body.parts.ports = ports
        self._body.save()

    async def _whole(self, change: Callable[[Link], Awaitable[T]]) -> T:
        async def alone() -> T:
            async with self._turn:
                self._body.check(Action.CHANGE)
                link = self._body.parts.link
                if link is None:
                    raise WrongState(f"{self._body.handle}: has no network")
                return await change(link)

        return await finish(asyncio.create_task(alone(), name=f"opening-{self._body.handle}"))
