"""An idle event loop, measured in the same way as the agent's. It prints its gaps when its standard input is closed."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import astuple

import structlog

from agent.lag import LoopLag


async def measure() -> None:
    lag = LoopLag(structlog.get_logger())
    measuring = asyncio.ensure_future(lag.run())
    print("begun", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    measuring.cancel()
    print(json.dumps([astuple(one) for one in lag.gaps]))


if __name__ == "__main__":
    asyncio.run(measure())
