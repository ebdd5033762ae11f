"""The hard limit of a container's processor time: set at create and live, read back, kept over a restart; and all figures at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from depot_kit import app, close_empty, settings_for, sh, until
from depot_kit import depot as depot
from depot_kit import stack as stack

from container import Container, CpuCap, Depot, Limits, WrongState

pytestmark = pytest.mark.kernel
CAP = CpuCap(20_000, 100_000, 10_000)


async def in_force(box: Container) -> CpuCap | None:
    return (await box.info()).cpu_cap


async def test_a_hard_limit_is_set_raised_lowered_and_lifted(depot: Depot, stack: Path) -> None:
    """Without a restart of the container; what the kernel has is what is told."""
    box = await depot.create(app(stack, limits=Limits(cpu_cap=CAP)))
    job = await box.spawn(sh("while :; do :; done"))
    assert (await in_force(box), box.limits.cpu_cap) == (CAP, CAP)
    for cap in (CpuCap(200_000), CpuCap(5_000, 50_000), None, CAP):
        await box.limit_cpu_cap(cap)
        assert (await in_force(box), box.limits.cpu_cap) == (cap, cap)
    assert job.status is None

    def periods() -> int:
        counts = box._body.cgroup.throttling()
        return counts.periods if counts is not None else 0

    await until(lambda: periods() > 0, lambda: "no period was counted")
    throttling = (await box.info()).throttling
    assert throttling is not None
    assert throttling.periods > 0
    await box.limit_cpu_cap(None)
    assert (await box.info()).throttling is None


async def test_a_hard_limit_outlives_the_manager(tmp_path: Path, stack: Path) -> None:
    """Also where somebody has lifted it meanwhile."""
    settings = settings_for(tmp_path, disk_limits=False)
    former = await Depot.open(settings)
    box = await former.create(app(stack, handle="app"))
    await box.limit_cpu_cap(CAP)
    box._body.cgroup.set_cpu_cap(None)
    await former.close()
    again = await Depot.open(settings)
    await again.recover()
    assert await in_force(again.find("app")) == CAP
    await close_empty(again)


async def test_a_limit_of_one_container_is_no_other_s(depot: Depot, stack: Path) -> None:
    one, other = await depot.create(app(stack)), await depot.create(app(stack))
    await one.limit_cpu_cap(CAP)
    assert await in_force(other) is None
    await one.destroy()
    with pytest.raises(WrongState):
        await one.limit_cpu_cap(None)


async def test_all_figures_come_at_once(depot: Depot, stack: Path) -> None:
    """As each container gives them; one that is being destroyed is left out."""
    boxes = [await depot.create(app(stack, handle=f"box{n}", limits=Limits(pids=10 + n))) for n in range(4)]
    await boxes[2].spawn(sh("sleep 1000"))
    found = await depot.infos()
    assert sorted(found) == ["box0", "box1", "box2", "box3"]
    assert [found[box.handle].pids for box in boxes] == [0, 0, 1, 0]
    assert len(found["box2"].job_ids) == 1
    await boxes[0].destroy()
    assert sorted(await depot.infos()) == ["box1", "box2", "box3"]
