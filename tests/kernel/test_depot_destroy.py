"""A container that cannot be removed keeps its handle and leases, and the depot tries again."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import testhost
from depot_kit import app, close_empty, leases_in_use, nothing_left, settings_for, sh, until
from depot_kit import depot as depot
from depot_kit import stack as stack

from container import (
    ContainersLeft,
    CreateError,
    Depot,
    SpecError,
    UnknownHandle,
    UnknownJob,
    WrongState,
)

pytestmark = pytest.mark.kernel


@contextmanager
def in_the_way(directory: Path) -> Iterator[None]:
    """Somebody's mount in a container's directory, which the manager does not dare to remove through."""
    place = directory / "foreign"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


async def test_a_failed_destroy_keeps_the_container_until_it_is_gone(depot: Depot, stack: Path) -> None:
    """Its handle, its leases and its place in the list; then it goes without being asked again."""
    box = await depot.create(app(stack, handle="box"))
    leases = leases_in_use(depot)

    with in_the_way(box.directory):
        with pytest.raises(OSError, match="a file system is mounted here"):
            await depot.destroy("box")

        assert depot.handles() == ("box",)
        assert depot.find("box") is box
        assert str(box.state) == "destroy failed"
        with pytest.raises(WrongState, match="cannot look in the state 'destroy failed'"):
            await box.info()
        assert leases_in_use(depot) == leases
        with pytest.raises(SpecError, match="in use"):
            await depot.create(app(stack, handle="box"))
        with pytest.raises(OSError, match="a file system is mounted here"):
            await depot.destroy("box", grace_s=1)

    await until(lambda: depot.handles() == (), lambda: "it is not tried again", 60)
    await nothing_left(depot.settings)
    assert str(box.state) == "destroyed"
    again = await depot.create(app(stack, handle="box"))
    assert (await again.run(sh("echo on"))).stdout == b"on\n"


async def test_a_destroy_that_is_asked_again_does_not_wait_for_the_next_try(
    depot: Depot, stack: Path
) -> None:
    """And the handle is free at once, whatever the next try had in mind."""
    box = await depot.create(app(stack, handle="box"))
    with in_the_way(box.directory), pytest.raises(OSError, match="mounted here"):
        await depot.destroy("box")

    await depot.destroy("box")

    assert depot.handles() == ()
    await depot.create(app(stack, handle="box"))


@pytest.mark.parametrize("rung", ["disk", "launch", "snapshot"])
async def test_a_create_that_cannot_be_undone_keeps_its_leases_until_it_is(
    tmp_path: Path, stack: Path, rung: str
) -> None:
    """The caller hears of the rung that broke; the handle is taken until nothing is left."""
    settings = settings_for(tmp_path)
    place = settings.depot_dir / "box/foreign"
    broken: list[str] = []

    def break_it(at: str) -> None:
        if at == rung and not broken:
            broken.append(at)
            place.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
            raise OSError(28, "broken on purpose")

    depot = await Depot.open(settings, fault=break_it)
    try:
        with pytest.raises(CreateError, match="broken on purpose"):
            await depot.create(app(stack, handle="box"))
        assert leases_in_use(depot) == 2
        assert depot.handles() == ("box",)
        with pytest.raises(UnknownHandle):
            depot.find("box")
        with pytest.raises(SpecError, match="in use"):
            await depot.create(app(stack, handle="box"))
    finally:
        subprocess.run(["umount", str(place)], check=True)

    await until(lambda: leases_in_use(depot) == 0, lambda: "it is not tried again", 60)
    await until(lambda: len(depot._retries) == 0, lambda: "it is still being tried", 60)
    assert (await (await depot.create(app(stack))).run(sh("echo on"))).stdout == b"on\n"
    await close_empty(depot)


async def test_the_tables_stay_for_as_long_as_a_container_does(tmp_path: Path, stack: Path) -> None:
    """A manager that ends with one that it could not remove leaves its wall standing; the next one removes both."""
    settings = settings_for(tmp_path)
    first = await Depot.open(settings)
    box = await first.create(app(stack, handle="box"))
    with in_the_way(box.directory):
        with pytest.raises(OSError, match="mounted here"):
            await first.destroy("box")
        with pytest.raises(ContainersLeft, match="box"):
            await first.close(remove_tables=True)
        await asyncio.wait_for(first.close(remove_tables=not first.handles()), 20)  # as the agent does
        assert "table inet garrison" in testhost.run("nft", "list", "tables")

    second = await Depot.open(settings)
    assert (await second.recover()).removed == ("box",)
    await close_empty(second)


async def test_a_job_that_forgets_itself_frees_its_id(depot: Depot, stack: Path) -> None:
    """By the job as by the container: both ways it is not known any more, and the id can be had again."""
    box = await depot.create(app(stack))
    for number in range(3):
        job = await box.spawn(sh(f"echo {number}", job_id="again"))
        assert (await job.wait()).ok
        assert await job.output("stdout") == f"{number}\n".encode()

        await (job.forget() if number else box.forget("again"))

        assert dict(box.jobs) == {}
    later = await box.spawn(sh("true", job_id="again"))
    await job.forget()  # of an earlier one, and not of that which has the id now
    assert dict(box.jobs) == {"again": later}
    assert (await later.wait()).ok


async def test_an_unknown_job_is_the_same_error_everywhere(depot: Depot, stack: Path) -> None:
    """One that never was, and one that has been forgotten."""
    box = await depot.create(app(stack))
    job = await box.spawn(sh("true", job_id="once"))
    assert (await job.wait()).ok
    await job.forget()
    for name in ("never", "once"):
        with pytest.raises(UnknownJob, match=name):
            await box.forget(name)
