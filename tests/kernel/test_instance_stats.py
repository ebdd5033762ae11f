"""The agent's measurements of instances on real containers, also while a container is being destroyed."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from depot_kit import app
from depot_kit import depot as depot
from depot_kit import stack as stack
from structlog.testing import CapturingLogger

from agent.bus.messages import AppLimits, StartMessage
from agent.instances.instance import Instance
from agent.instances.stats import sample
from container import Depot, WrongState

pytestmark = pytest.mark.kernel


async def test_a_measurement_of_what_is_being_destroyed_is_no_error(depot: Depot, stack: Path) -> None:
    """A round of measurements may meet a container on its way out: the library refuses, the round passes it over."""
    container = await depot.create(app(stack))
    message = StartMessage("app", "v1", "name", 0, AppLimits(16, 32, 64), (), "default")
    instance = Instance(id="i", private_id="p", message=message, version="v1", uris=())
    kept = CapturingLogger()
    log = structlog.wrap_logger(kept, processors=[])
    await sample(instance, container, log)
    measured = instance.cpu_seen
    await depot.destroy(container.handle)

    with pytest.raises(WrongState):
        await container.info()
    await sample(instance, container, log)

    assert measured is not None
    assert instance.cpu_seen == measured
    assert kept.calls == []
