"""When is an app healthy? When its port accepts; an app without routes is at once (docs/protocol.md, "Health check")."""

from __future__ import annotations

import asyncio
import contextlib

PERIOD_S = 0.5
CONNECT_TIMEOUT_S = 2.0


async def accepts(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def wait_accepting(host: str, port: int, timeout_s: float) -> bool:
    """True as soon as a connection is accepted; False when the time is over. Quick looks at first, then every 0.5 s."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pause_s = 0.02
    while True:
        if await accepts(host, port):
            return True
        if loop.time() + pause_s > deadline:
            return False
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, PERIOD_S)
