"""Fixtures for the tests of the bus: a server, hosts that connect to it, peers that subscribe."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from servers import Host, NatsServer, Peer, nats_server

MakeHost = Callable[..., Host]
Listen = Callable[..., Awaitable[Peer]]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as one:
        yield one


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as one:
        yield one


@pytest.fixture
def make_host(stack: AsyncExitStack, server: NatsServer, tmp_path: Path) -> MakeHost:
    def make(**more: Any) -> Host:
        host = Host([server.url], tmp_path / "outbox", **more)
        stack.push_async_callback(host.stop)
        return host

    return make


@pytest.fixture
def listen(stack: AsyncExitStack, server: NatsServer) -> Listen:
    async def open_one(*subjects: str) -> Peer:
        peer = await Peer.open(server, *subjects)
        stack.push_async_callback(peer.close)
        return peer

    return open_one
