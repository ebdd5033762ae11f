"""Streams output to an HTTP client, one JSON object a line. agent/cli/__init__.py describes the fields.

Each write waits until the client has read enough of the lines before. So a slow client delays only its own reading, and
does not make the agent's memory grow.
"""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

from aiohttp import web

from agent.output import OutputChunk, OutputSource


async def stream_output(
    request: web.Request, *sources: OutputSource, first: OutputChunk | None = None, follow: bool
) -> web.StreamResponse:
    """Send ``first``, then each source until it ends. Returns when all have ended or the client has disconnected."""
    lines = _OutputLines(request)
    await lines.begin()
    with contextlib.suppress(ConnectionResetError):  # the client has disconnected
        if first is not None:
            await lines.write(first)
        for source in sources:
            await source.read(lines.write, follow=follow)
        await lines.end()
    return lines.response


class _OutputLines:
    """Writes chunks as lines. ConnectionResetError: the client has disconnected."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})

    async def begin(self) -> None:
        await self.response.prepare(self._request)

    async def write(self, chunk: OutputChunk) -> None:
        line = json.dumps(_shown(chunk), separators=(",", ":")).encode()
        await self.response.write(line + b"\n")

    async def end(self) -> None:
        await self.response.write_eof()


def _shown(chunk: OutputChunk) -> dict[str, Any]:
    shown: dict[str, Any] = {"at": chunk.at_s, "stream": chunk.stream}
    if chunk.instance is not None:
        shown |= {"index": chunk.index, "instance": chunk.instance}
    if chunk.gap_bytes:
        shown["gap_bytes"] = chunk.gap_bytes
    try:
        return {**shown, "data": chunk.data.decode()}
    except UnicodeDecodeError:
        return {**shown, "data_base64": base64.b64encode(chunk.data).decode()}
