"""The controller's blob store: serves droplets, packages, buildpacks and caches, accepts uploads, and can stall."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

USER, PASSWORD = "staging-user", "s3cret"


@dataclass
class _Stall:
    """While it is set for a path, answers stop half-way until ``go``."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class FileServer:
    """``files``: path -> content; another path is a 404. ``uploads``: path -> the last upload.

    ``broken``: paths whose uploads are answered with a 500.
    """

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    _stalls: dict[str, _Stall] = field(default_factory=dict)
    _runner: web.AppRunner | None = None

    async def open(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/{path:.*}", self._give)
        app.router.add_post("/{path:.*}", self._take)
        # a stalled answer must not hold up the end of a test
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def close(self) -> None:
        for stall in self._stalls.values():
            stall.go.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def url(self, path: str) -> str:
        return f"http://{USER}:{PASSWORD}@127.0.0.1:{self.port}{path}"

    def put(self, path: str, data: bytes) -> str:
        """Serves ``data``. Returns its URL."""
        self.files[path] = data
        return self.url(path)

    @contextmanager
    def stalled(self, path: str) -> Iterator[asyncio.Event]:
        """Within the block a download stops half-way, and an upload before its answer. The event is set when one has stopped."""
        stall = self._stalls[path] = _Stall()
        try:
            yield stall.reached
        finally:
            del self._stalls[path]
            stall.go.set()

    async def _give(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        data = self.files.get(request.path)
        if data is None:
            return web.Response(status=404)
        stall = self._stalls.get(request.path)
        if stall is None:
            return web.Response(body=data)
        response = web.StreamResponse()
        response.content_length = len(data)
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        stall.reached.set()
        await stall.go.wait()
        await response.write(data[len(data) // 2 :])
        return response

    async def _take(self, request: web.Request) -> web.Response:
        """Accepts an upload as the Cloud Controller does: a form with one part. The droplet can be downloaded at once."""
        reader = await request.multipart()
        part = await reader.next()
        if part is None or getattr(part, "name", None) != "upload[droplet]":
            return web.Response(status=400, text="expected a part upload[droplet]")
        data = bytes(await part.read())  # type: ignore[union-attr]
        if (stall := self._stalls.get(request.path)) is not None:
            stall.reached.set()
            await stall.go.wait()
        if request.path in self.broken:
            return web.Response(status=500)
        self.uploads[request.path] = data
        self.files[request.path.removesuffix("/upload")] = data
        return web.json_response({"metadata": {"guid": _sha1(data)}, "entity": {"status": "finished"}})


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
