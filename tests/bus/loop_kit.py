"""Checks whether the agent's event loop was blocked, by comparing its lag with that of an idle loop in another process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from driver import Host

LIMIT_S = 0.25
IDLE = Path(__file__).with_name("idle_loop.py")
#: The fields of `agent.lag.Gap`.
Gap = Sequence[float]


@contextlib.asynccontextmanager
async def no_standstill(host: Host) -> AsyncIterator[None]:
    """Fails if within the block the agent's loop has a gap that is `LIMIT_S` longer than the idle loop's at the same time."""
    idle = await asyncio.create_subprocess_exec(
        sys.executable, str(IDLE), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert idle.stdin is not None
    assert idle.stdout is not None
    try:
        assert await idle.stdout.readline() == b"begun\n"
        since_s = time.monotonic()
        yield
        agents: list[Gap] = (await host.status())["loop_gaps"]
        idle.stdin.close()
        idles: list[Gap] = json.loads(await idle.stdout.read())
    finally:
        if idle.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                idle.kill()
        await idle.wait()
    over = [(excess_s(one, idles) / limit_s(one), one) for one in agents if one[0] - one[1] > since_s]
    worst = max(over, default=(0.0, ()))
    print(f"{len(over)} gaps of the agent's loop, the worst {worst[0]:.2f} of what is allowed: {worst[1]}")
    assert worst[0] <= 1, (worst, host.running.log_text())


def excess_s(gap: Gap, idles: Sequence[Gap]) -> float:
    """How much longer the gap was than the idle loop's at the same time, and than the time that other processes took."""
    ended_s, length_s, _, waited_s = gap
    at_once = [one[1] for one in idles if one[0] > ended_s - length_s and one[0] - one[1] < ended_s]
    return length_s - max([waited_s, *at_once])


def limit_s(gap: Gap) -> float:
    """The limit for a gap, scaled up by the share of it that other processes took (at most eightfold)."""
    _, length_s, _, waited_s = gap
    return LIMIT_S * length_s / max(length_s - waited_s, length_s / 8)
