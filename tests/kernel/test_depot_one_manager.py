"""A depot, a cgroup parent and the firewall tables of a network namespace have one manager each; a second one is refused."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from depot_kit import BOTH_BUILDS
from depot_kit import depot as depot
from depot_kit import stack as stack
from netns_kit import Namespace

from container import (
    Depot,
    DepotBusy,
)

pytestmark = [pytest.mark.kernel, BOTH_BUILDS]


async def test_a_depot_has_one_manager(depot: Depot) -> None:
    """A second one would destroy the first one's containers."""
    with pytest.raises(DepotBusy, match=str(depot.settings.depot_dir)):
        await Depot.open(depot.settings)


async def test_a_depot_has_one_manager_whatever_else_the_second_has(depot: Depot) -> None:
    """With a cgroup parent and a network namespace of its own, only the depot's own lock refuses it; it leaves no cgroup."""
    other = f"{depot.settings.cgroup_parent}-other"
    elsewhere = Namespace.new()

    async def open_it() -> None:
        await Depot.open(replace(depot.settings, cgroup_parent=other))

    def second() -> str:
        try:
            asyncio.run(open_it())
        except DepotBusy as e:
            return str(e)
        return "opened"

    try:
        answer = await asyncio.to_thread(elsewhere.do, second)
    finally:
        elsewhere.close()
    assert answer == f"{depot.settings.depot_dir}: another manager has it open"
    assert not [*Path("/sys/fs/cgroup").glob(f"**/{other}")]


async def test_a_cgroup_parent_has_one_manager(depot: Depot, tmp_path: Path) -> None:
    """The second would sweep the first one's cgroups, as nobody's."""
    with pytest.raises(DepotBusy, match=depot.settings.cgroup_parent):
        await Depot.open(replace(depot.settings, depot_dir=tmp_path / "other"))


async def test_the_tables_of_a_network_namespace_have_one_manager(depot: Depot, tmp_path: Path) -> None:
    """Two would undo each other's rules for ever; the one that is refused names the other."""
    other = f"{depot.settings.cgroup_parent}-other"
    with pytest.raises(DepotBusy, match=rf"pid {os.getpid()}\b"):
        await Depot.open(replace(depot.settings, depot_dir=tmp_path / "other", cgroup_parent=other))
