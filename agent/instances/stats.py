"""Samples the resource use of an instance: once when it runs, then at the configured period."""

from __future__ import annotations

import time

from agent.depot import AgentContainer
from agent.instances.instance import Instance
from agent.logs import Log
from container import WrongState


async def sample(instance: Instance, container: AgentContainer, log: Log) -> None:
    """CPU is a fraction of one core between two samples; memory and disk are current values. After a failure the old values stay."""
    try:
        info = await container.info()
    except WrongState:
        return  # it is being destroyed: there is nothing to measure any more
    except OSError as e:
        log.warning("sample_failed", instance=instance.id, error=str(e))
        return
    now = time.monotonic()
    if instance.cpu_seen is not None and now > instance.cpu_seen[0]:
        before_s, before_ns = instance.cpu_seen
        instance.cpu_fraction = max(0.0, (info.cpu_ns - before_ns) / 1e9 / (now - before_s))
    instance.cpu_seen = (now, info.cpu_ns)
    instance.memory_bytes = info.memory_bytes
    instance.disk_bytes = instance.layer_bytes + info.disk_bytes
