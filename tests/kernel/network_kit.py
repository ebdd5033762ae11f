"""Helpers of the network's kernel tests: a depot, a network behind its host, and containers with services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from depot_kit import app, nothing_left, settings_for
from netns_kit import DNS_IP, FAR_IP, HOST_IP, TCP, UDP, WORLD_IP, Answer, Namespace, World, ask, settle
from testhost import forget_empty_tables as forget_empty_tables

from container import Container, Depot, EgressRule, PortMapping, Protocol

APP_PORT: Final = 7100  # where every container serves
HOST_PORTS: Final = (7200, 7201)  # where the host serves
#: The same contract holds for each firewall back end.
BACK_ENDS: Final = ("nftables", "iptables-nft", "iptables-legacy")
EVERYWHERE: Final = EgressRule(Protocol.ALL, ("0.0.0.0/0",))


@dataclass
class Told:
    """The log, as far as it is waited for."""

    lines: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def info(self, event: str, *args: Any, **fields: Any) -> None:
        self.lines.append((event, fields))
        self._more.set()

    warning = info

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.lines if name == event]

    async def wait(self, event: str, count: int = 1, within_s: float = 20.0) -> dict[str, Any]:
        """The ``count``-th line of that name."""
        async with asyncio.timeout(within_s):
            while len(self.of(event)) < count:
                self._more.clear()
                await self._more.wait()
        return self.of(event)[count - 1]


@dataclass(frozen=True, slots=True)
class Box:
    """A container, and where to stand to speak for it."""

    name: str
    container: Container
    space: Namespace

    @property
    def address(self) -> str:
        assert self.container.address is not None
        return self.container.address

    @property
    def gateway(self) -> str:
        assert self.container.host_address is not None
        return self.container.host_address


class Rig:
    def __init__(self, world: World, depot: Depot, told: Told, stack: Path) -> None:
        self.world = world
        self.host = world.host
        self.depot = depot
        self.told = told
        self.boxes: dict[str, Box] = {}
        self._stack = stack

    async def box(
        self, name: str, *, ports: Iterable[PortMapping] = (), egress: Iterable[EgressRule] = ()
    ) -> Box:
        made = await self.depot.create(
            app(self._stack, handle=name, ports=tuple(ports), egress=tuple(egress))
        )
        return self.enter(made)

    def enter(self, container: Container) -> Box:
        """Its namespace is held, and it serves TCP and UDP."""
        box = Box(container.handle, container, Namespace.of(container.pid))
        for kind in (TCP, UDP):
            self.world.services.add(box.name, box.space, kind, APP_PORT)
        self.boxes[box.name] = box
        return box

    async def end(self, name: str) -> None:
        """Lets go of its namespace, which would keep its link alive, and destroys it."""
        box = self.boxes.pop(name)
        self.world.services.end(name)
        box.space.close()
        await self.depot.destroy(name)

    def was_heard(self, name: str, answer: Answer) -> bool:
        """Also what was not answered: the service has by then read all that came before."""
        where, port = {
            "host": (self.host, HOST_PORTS[0]),
            "world": (self.world.space, 8080),
        }.get(name) or (self.boxes[name].space, APP_PORT)
        settle(where, port, self.world.services, name)
        return any(one.token == answer.token for one in self.world.services.heard)

    def rules(self) -> str:
        return self.host.run("nft", "list", "ruleset")


@asynccontextmanager
async def rig(base: Path, stack: Path, **changes: object) -> AsyncIterator[Rig]:
    """Nothing is left of it afterwards."""
    told = Told()
    settings = settings_for(base, **{"dns_servers": (DNS_IP,), "disk_limits": False, **changes})
    with ExitStack() as undo:
        world = World(undo)
        for kind in (TCP, UDP):
            for port in HOST_PORTS:
                world.services.add("host", world.host, kind, port)
        depot = await Depot.open(settings, log=told)
        scene = Rig(world, depot, told, stack)
        try:
            yield scene
        finally:
            for name in tuple(scene.boxes):
                await scene.end(name)
            for handle in depot.handles():
                await depot.destroy(handle)
            await nothing_left(settings)
            await depot.close(remove_tables=True)
            depot._shared.cgroups.remove_parents()


def tcp(host_port: int | None = None, container_port: int | None = APP_PORT) -> PortMapping:
    return PortMapping(Protocol.TCP, host_port, container_port)


def udp(host_port: int | None = None, container_port: int | None = APP_PORT) -> PortMapping:
    return PortMapping(Protocol.UDP, host_port, container_port)


def hears_nobody(scene: Rig, kind: int) -> None:
    """Of all that ``app`` could ask, with ``peer`` beside it, nobody gets anything."""
    app, peer = scene.boxes["app"], scene.boxes["peer"]
    asked = [
        ("world", FAR_IP, 8080),
        ("world", WORLD_IP, 8080),
        ("host", HOST_IP, HOST_PORTS[0]),
        ("host", app.gateway, HOST_PORTS[0]),
        ("host", peer.gateway, HOST_PORTS[0]),
        ("peer", peer.address, APP_PORT),
    ]
    for name, address, port in asked:
        answer = ask(app.space, kind, address, port)
        assert not answer, address
        assert not scene.was_heard(name, answer), address


def reaches(where: Namespace, kind: int, address: str, port: int) -> str:
    """Who answers; nobody within the patience of a loaded machine is ''."""
    return ask(where, kind, address, port, wait_s=10.0).name
