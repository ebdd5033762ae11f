"""A manager in a process of its own, which a test kills. It makes containers and jobs for ever and prints what it has done.

    python depot_manager.py BASE STACK MODE

Mode ``churn`` creates and destroys until it is killed; ``keep`` makes two containers with jobs and waits.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from depot_kit import app, settings_for, sh

from container import Depot, PortMapping


def say(*words: object) -> None:
    print(*words, flush=True)


async def keep(depot: Depot, stack: Path) -> None:
    for handle in ("one", "two"):
        box = await depot.create(app(stack, handle=handle, properties={"n": handle}, ports=(PortMapping(),)))
        await box.spawn(sh("echo early; exit 5", job_id="done"))
        await box.spawn(
            sh("echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo ended", job_id="open")
        )
        await box.jobs["done"].wait()
        await anext(box.jobs["open"].stream("stdout"))
    say("ready")
    await asyncio.Event().wait()


async def churn(depot: Depot, stack: Path) -> None:
    number = 0

    async def one(slot: int) -> None:
        nonlocal number
        while True:
            number += 1
            box = await depot.create(app(stack, handle=f"c{slot}-{number}"))
            job = await box.spawn(sh("echo out"))
            await job.wait()
            await depot.destroy(box.handle)

    say("ready")
    await asyncio.gather(*(one(slot) for slot in range(3)))


async def main() -> None:
    base, stack, mode, parent = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    depot = await Depot.open(settings_for(base, cgroup_parent=parent))
    await depot.recover()
    await {"keep": keep, "churn": churn}[mode](depot, stack)


asyncio.run(main())
