"""The files for the next manager: records of callers and snapshots; and the order of recover and create."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from depot_kit import app, close_empty, settings_for, sh
from depot_kit import left as left
from depot_kit import stack as stack

from container import (
    Depot,
    RecoverFirst,
    snapshot,
)

pytestmark = pytest.mark.kernel


async def test_a_callers_record_comes_back(tmp_path: Path, stack: Path) -> None:
    """With the container that was taken up, and from one that had to be removed."""
    depot = await Depot.open(settings_for(tmp_path))
    box = await depot.create(app(stack, handle="kept"), record=b"first")
    assert box.record == b"first"
    box.keep_record(b"second")
    await depot.create(app(stack, handle="lost"), record=b"of the lost one")
    await depot.create(app(stack, handle="none"))
    await depot.close()
    (settings_for(tmp_path).depot_dir / "lost" / snapshot.FILE_NAME).write_bytes(b"{")

    again = await Depot.open(settings_for(tmp_path))
    recovery = await again.recover()

    assert (recovery.found, recovery.removed) == (("kept", "none"), ("lost",))
    assert (again.find("kept").record, again.find("none").record) == (b"second", None)
    assert recovery.records == {"lost": b"of the lost one"}
    assert (again.find("kept").directory / "record").stat().st_mode & 0o777 == 0o600
    await close_empty(again)


async def test_a_snapshot_that_cannot_be_written_keeps_no_job_alive(tmp_path: Path, stack: Path) -> None:
    """A full disk of the host: stop says so, and has stopped; destroy removes all the same."""
    depot = await Depot.open(settings_for(tmp_path))
    box = await depot.create(app(stack, handle="x"))
    job = await box.spawn(sh("exec sleep 1000"))
    (box.directory / (snapshot.FILE_NAME + ".new")).mkdir()

    with pytest.raises(IsADirectoryError):
        await box.stop(0)

    assert (await job.wait()).signal in (signal.SIGTERM, signal.SIGKILL)
    await depot.destroy("x", grace_s=1)  # nothing is left of it, so there is nothing to raise
    assert depot.handles() == ()
    await close_empty(depot)


async def test_a_depot_with_containers_takes_no_create_before_it_has_recovered(
    left: Path, stack: Path
) -> None:
    """Their ids and addresses are not known to be taken until then."""
    async with Depot.open(settings_for(left)) as depot:
        with pytest.raises(RecoverFirst, match="is not empty"):
            await depot.create(app(stack))
        await depot.recover()
        box = await depot.create(app(stack))
        await box.destroy()
        assert depot.handles() == ("left",)
