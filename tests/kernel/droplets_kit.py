"""Helpers of the droplets' kernel tests: an HTTP server on loopback that can misbehave, and layers in a directory of the test."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from aiohttp import web

from agent.droplets.layers import Layers
from agent.droplets.transfer import Transfers
from agent.droplets.unpacker import Unpacker

WAIT_S = 30.0
STALL_S = 1.5
MIB = 1 << 20
DATA = b"droplet" * 10_000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@dataclass
class Peer:
    """An HTTP server. ``files`` are served whole; ``handlers`` do as they like. ``requests``: what came."""

    files: dict[str, bytes] = field(default_factory=dict)
    handlers: dict[str, Handler] = field(default_factory=dict)
    requests: list[web.Request] = field(default_factory=list)
    base_url: str = ""
    at_once: int = 0
    most_at_once: int = 0

    def serve(self, data: bytes) -> tuple[str, str]:
        """Under its own checksum: (sha1, URL)."""
        digest = sha1(data)
        self.files[f"/{digest}"] = data
        return digest, f"{self.base_url}/{digest}"

    def handle(self, path: str, handler: Handler) -> str:
        self.handlers[path] = handler
        return self.base_url + path

    def count(self, path: str) -> int:
        return sum(request.path == path for request in self.requests)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if (handler := self.handlers.get(request.path)) is not None:
                return await handler(request)
            if (data := self.files.get(request.path)) is not None:
                return web.Response(body=data)
            return web.Response(status=404)
        finally:
            self.at_once -= 1


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    """On a free port of loopback (the test host's own)."""
    found = Peer()
    runner = web.ServerRunner(web.Server(found.answer), shutdown_timeout=0.1)  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield found
    finally:
        await runner.cleanup()


@asynccontextmanager
async def layers_in(
    base: Path, *, concurrent: int = 8, low_water_bytes: int = 0
) -> AsyncIterator[tuple[Layers, Transfers]]:
    """Opened; at the end closed, and nothing half-made may be there."""
    transfers = Transfers(concurrent, stall_s=STALL_S)
    layers = Layers(
        base / "layers",
        base / "trash",
        transfers,
        Unpacker(low_water_bytes=low_water_bytes),
        structlog.get_logger(),
    )
    await layers.open()
    try:
        yield layers, transfers
    finally:
        await layers.close()
        await transfers.close()
        assert half_made(base) == []


def half_made(base: Path) -> list[str]:
    """What is neither a layer nor its record, and what the trash still holds."""
    names = sorted(os.listdir(base / "layers"))
    whole = {name for name in names if len(name) == 40}
    records = {f"{name}.json" for name in whole}
    assert records <= set(names), "a layer without its record"
    return [name for name in names if name not in whole | records] + sorted(os.listdir(base / "trash"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def with_credentials(url: str, credentials: str = "staging-user:s3%40cret") -> str:
    return url.replace("http://", f"http://{credentials}@")


async def download(transfers: Transfers, url: str, limit_bytes: int = MIB) -> bytes:
    found = bytearray()

    async def sink(piece: bytes) -> None:
        found.extend(piece)

    await transfers.download(url, sink, limit_bytes=limit_bytes)
    return bytes(found)


def answer(status: int, body: bytes | str = b"") -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    return handler


async def never_answer(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(WAIT_S)
    return web.Response()


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
