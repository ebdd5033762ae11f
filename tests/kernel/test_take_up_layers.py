"""The layer of an app taken up from a former agent counts as in use until its container is removed."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from droplets_kit import layers_in

from agent.bus.messages import AppLimits, StartMessage
from agent.instances.instance import Instance
from agent.instances.launch import take_up
from agent.instances.parts import LifeParts

pytestmark = pytest.mark.kernel
SHA1 = "a" * 40


class OneContainer:
    """The part of a depot that a take-up asks for."""

    def __init__(self) -> None:
        self.destroyed: list[str] = []

    def find(self, handle: str) -> Any:
        return SimpleNamespace(handle=handle)

    async def destroy(self, handle: str) -> None:
        self.destroyed.append(handle)


async def test_a_layer_that_a_former_agent_gave_to_a_container_is_not_evicted(base_dir: Path) -> None:
    """A running app's files would go under its hands; afterwards the layer is one as any other."""
    message = StartMessage("app", "v", "name", 0, AppLimits(16, 32, 64), (), "default", sha1=SHA1)
    instance = Instance(id="i", private_id="p", message=message, version="v", uris=(), handle="h")
    depot = OneContainer()
    async with layers_in(base_dir) as (layers, _):
        (base_dir / "tree/app").mkdir(parents=True)
        await layers.adopt(base_dir / "tree", SHA1, size_bytes=7, files=1)
        parts = cast(LifeParts, SimpleNamespace(depot=depot, layers=layers))
        async with AsyncExitStack() as held:
            assert take_up(instance, parts, held).handle == "h"
            assert instance.layer_bytes == 7
            assert await layers.sweep(keep=()) == ()
        assert depot.destroyed == ["h"]
        assert await layers.sweep(keep=()) == (SHA1,)
