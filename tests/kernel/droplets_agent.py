"""An agent that only fetches droplets, and that a test may kill at any moment: `python droplets_agent.py BASE SHA1=URL...`.

Prints "ready" once it fetches; ends by itself when all is there.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import structlog

from agent.droplets.layers import Layers
from agent.droplets.transfer import Transfers
from agent.droplets.unpacker import Unpacker


async def main(base: Path, droplets: list[str]) -> None:
    transfers = Transfers(8)
    layers = Layers(
        base / "layers", base / "trash", transfers, Unpacker(low_water_bytes=0), structlog.get_logger()
    )
    await layers.open()
    print("ready", flush=True)
    for droplet in droplets:
        digest, url = droplet.split("=", 1)
        await layers.ensure(digest, url, 1 << 30)
    await layers.close()
    await transfers.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
