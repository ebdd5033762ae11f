"""A router like gorouter: it learns routes only from the bus, compares uri and host:port, and can be cut off from the bus."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import msgspec
from driver import Host

from agent.dev.gateway import Endpoint, RouteMessage, Routes


class Router:
    """Sends each request once, to one instance, and counts the answers."""

    def __init__(self, host: Host, uri: str) -> None:
        self._host = host
        self._uri = uri
        self._routes = Routes()
        self._read = 0
        self.answers: Counter[str] = Counter()

    @property
    def backends(self) -> int:
        return len(self.find(self._uri))

    def find(self, uri: str) -> list[Endpoint]:
        """The endpoints to which requests go now."""
        for one in self._host.peer.heard[self._read :]:
            if one.subject in ("router.register", "router.unregister"):
                message = msgspec.json.decode(one.payload, type=RouteMessage)
                if one.subject == "router.register":
                    self._routes.register(message, 0.0)
                else:
                    self._routes.unregister(message)
        self._read = len(self._host.peer.heard)
        return self._routes.find(uri, "/")

    async def come_back(self) -> None:
        """Reconnects the router after it was cut off: it has kept its routes and received nothing."""
        self._read = len(self._host.peer.heard)
        await self._host.peer.say("router.start", {"id": "0-r", "pruneThresholdInSeconds": 1})

    async def load(self, rate_per_s: float, until: Callable[[], bool]) -> None:
        async with asyncio.TaskGroup() as group:
            while not until():
                group.create_task(self._request())
                await asyncio.sleep(1 / rate_per_s)

    async def _request(self) -> None:
        backends = self.find(self._uri)
        if not backends:
            self.answers["404"] += 1
            return
        try:
            answer = await self._host.ask_app(backends[0].port)
        except OSError as e:
            answer = repr(e)
        self.answers["200" if "PORT=" in answer else answer or "cut off"] += 1
