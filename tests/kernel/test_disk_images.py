"""The disk limit alone, without a container: images, loop devices and the reserve."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from disk_kit import BLOCK, MIB, Shelf, df, fill, loops, make_files

from container.disk import Disk, DiskError

pytestmark = pytest.mark.kernel


@pytest_asyncio.fixture
async def shelf(base_dir: Path) -> AsyncIterator[Shelf]:
    one = Shelf(base_dir)
    yield one
    for disk in one.made:
        await disk.destroy()


def knob(disk: Disk) -> Path:
    """The kernel's own place for the reserve, found by the image and not by the code under test."""
    (name,) = loops(disk.image)
    return Path("/sys/fs/ext4", name, "reserved_clusters")


# The limit.


@pytest.mark.parametrize("limit_mib", [4, 64, 300])
async def test_a_disk_takes_what_its_limit_says(shelf: Shelf, limit_mib: int) -> None:
    """Within two per cent, or a few blocks where that is less; then ENOSPC."""
    disk = await shelf.create(limit_mib * MIB)
    slack = max(limit_mib * MIB // 50, 16 * BLOCK)

    written = fill(disk.path / "file")

    assert limit_mib * MIB - slack <= written <= limit_mib * MIB
    assert abs(disk.usage().bytes - written) <= slack


async def test_written_back_a_full_disk_has_lost_nothing(shelf: Shelf) -> None:
    """Delayed data is counted when it is written, and the reserve pays for what its blocks need besides."""
    disk = await shelf.create(32 * MIB)
    with (disk.path / "file").open("ab") as file:
        written = fill(disk.path / "file")
        os.fsync(file.fileno())
    subprocess.run(["sync", "-f", str(disk.path)], check=True)

    Path("/proc/sys/vm/drop_caches").write_text("1")
    assert (disk.path / "file").read_bytes() == b"x" * written
    assert 31 * MIB <= written <= 32 * MIB


@pytest.mark.parametrize(
    ("limit_mib", "inodes"), [(1, 1000), (4, 1000), (64, 200_000), (300, 200_000), (3000, 5000)]
)
async def test_df_shows_the_limit(shelf: Shelf, limit_mib: int, inodes: int) -> None:
    """Size within five per cent, nothing used, and all of the limit available."""
    disk = await shelf.create(limit_mib * MIB, inodes=inodes)

    size, used, available = df(disk)

    assert limit_mib * MIB <= size <= 1.05 * limit_mib * MIB
    assert used <= 16 * BLOCK
    assert abs(available - limit_mib * MIB) <= BLOCK


@pytest.mark.parametrize(("limit_mib", "max_mib"), [(64, 128), (64, 1024), (4, 4096)])
async def test_with_headroom_df_shows_what_is_available(shelf: Shelf, limit_mib: int, max_mib: int) -> None:
    """Size as formatted; available is the limit without what is used, live, both ways up to that size."""
    disk = await shelf.create(limit_mib * MIB, max_bytes=max_mib * MIB)
    (disk.path / "file").write_bytes(b"x" * 2 * MIB)
    used_bytes = disk.usage().bytes

    for limit in (limit_mib * MIB, max_mib * MIB, 3 * MIB, MIB, limit_mib * MIB):
        disk.resize(limit)
        size, used, available = df(disk)
        assert max_mib * MIB <= size <= 1.05 * max_mib * MIB
        assert 2 * MIB <= used <= 2 * MIB + 16 * BLOCK
        assert abs(available - max(0, limit - used_bytes)) <= BLOCK

    disk.resize(max_mib * MIB)
    with pytest.raises(DiskError, match="fixed at create"):
        disk.resize(max_mib * MIB * 105 // 100)


async def test_a_tiny_disk_with_many_inodes_works(shelf: Shelf) -> None:
    """The tables of 200,000 inodes are fifty times what it holds."""
    disk = await shelf.create(MIB, inodes=200_000)

    assert MIB - 16 * BLOCK <= fill(disk.path / "file") <= MIB
    assert os.statvfs(disk.path).f_files >= 200_000


async def test_more_inodes_than_anything_else(shelf: Shelf) -> None:
    """mkfs refuses the first guesses for a million of them, and gets more."""
    disk = await shelf.create(MIB, inodes=1_000_000)

    assert MIB - 16 * BLOCK <= fill(disk.path / "file") <= MIB
    assert os.statvfs(disk.path).f_files >= 1_000_000


async def test_an_empty_disk_has_no_usage(shelf: Shelf) -> None:
    """The file system's own blocks are not the app's."""
    disk = await shelf.create(64 * MIB)
    assert (disk.usage().bytes, disk.usage().inodes) == (0, 0)

    (disk.path / "file").write_bytes(b"x" * 10 * MIB)
    (disk.path / "directory").mkdir()
    assert 10 * MIB <= disk.usage().bytes <= 10 * MIB + 4 * BLOCK
    assert disk.usage().inodes == 2

    (disk.path / "file").unlink()
    (disk.path / "directory").rmdir()
    assert (disk.usage().bytes, disk.usage().inodes) == (0, 0)


async def test_the_limit_changes_both_ways_while_files_lie_there(shelf: Shelf) -> None:
    """Up: more goes in. Below what is used: nothing more, and nothing is lost. Up again: it goes on."""
    disk = await shelf.create(16 * MIB, max_bytes=100 * MIB)
    file = disk.path / "file"
    assert fill(file) >= 15 * MIB

    disk.resize(48 * MIB)
    assert 31 * MIB <= fill(file) <= 33 * MIB

    disk.resize(8 * MIB)
    size = file.stat().st_size
    assert fill(file) == 0
    assert file.read_bytes() == b"x" * size

    os.truncate(file, 4 * MIB)
    disk.resize(8 * MIB)
    assert 3 * MIB <= fill(file) <= 4 * MIB

    disk.resize(None)
    assert fill(file, 64 * MIB) == 64 * MIB


async def test_the_same_limit_twice_changes_nothing(shelf: Shelf) -> None:
    """No drift, however often it is said."""
    disk = await shelf.create(32 * MIB)
    (disk.path / "file").write_bytes(b"x" * 8 * MIB)
    free = os.statvfs(disk.path).f_bavail
    for limit in (32, 20, 32, 32, 31, 32):
        disk.resize(limit * MIB)

    assert abs(os.statvfs(disk.path).f_bavail - free) <= 16
    assert 23 * MIB <= fill(disk.path / "file") <= 24 * MIB


async def test_changes_at_once_leave_one_of_them(shelf: Shelf) -> None:
    """Each is one number, and the kernel takes it whole."""
    disk = await shelf.create(32 * MIB, max_bytes=64 * MIB)
    limits = [8 * MIB, 64 * MIB] * 10

    await asyncio.gather(*(asyncio.to_thread(disk.resize, limit) for limit in limits))

    free = os.statvfs(disk.path).f_bavail * BLOCK
    assert min(abs(free - limit) for limit in set(limits)) <= MIB // 4


async def test_a_limit_past_what_was_formatted_is_refused(shelf: Shelf) -> None:
    """At create by the largest size there is, later by that of the image; the old limit stays."""
    with pytest.raises(DiskError, match=r"limits\.disk_bytes: expected at most"):
        await shelf.create(1 << 50)
    disk = await shelf.create(8 * MIB, name="other")

    with pytest.raises(DiskError, match=r"limits\.disk_bytes: expected at most"):
        disk.resize(1 << 40)

    assert 7 * MIB <= fill(disk.path / "file") <= 8 * MIB


async def test_the_number_of_files_is_limited_at_create(shelf: Shelf) -> None:
    """As exactly as the file system's groups allow."""
    disk = await shelf.create(64 * MIB, inodes=5000)

    made = make_files(disk.path)

    assert 5000 <= made <= 5000 + 128
    assert disk.usage().inodes == made


async def test_images_are_sparse_whatever_they_promise(shelf: Shelf) -> None:
    """What an app writes is what the host pays."""
    small = await shelf.create(1024 * MIB, name="small")
    unlimited = await shelf.create(None, name="unlimited")

    for disk in (small, unlimited):
        fill(disk.path / "file", 4 * MIB)
        with (disk.path / "file").open() as file:
            os.fsync(file.fileno())
        assert disk.image.stat().st_blocks * 512 <= 16 * MIB
    assert 1024 * MIB <= small.image.stat().st_size <= 1100 * MIB
    assert unlimited.image.stat().st_size >= 1 << 40
    assert df(unlimited)[2] >= 1023 << 30


# Templates, loop devices, and what is left.


async def test_a_template_is_made_once(shelf: Shelf) -> None:
    """Ten at once, with two kinds between them: two templates, and nothing beside them."""
    await asyncio.gather(*(shelf.create(64 * MIB, inodes=1000 + n % 2, name=f"d{n}") for n in range(10)))

    templates = {path: path.stat().st_mtime_ns for path in shelf.templates.iterdir()}
    assert len(templates) == 2
    await shelf.create(64 * MIB - 5 * BLOCK, inodes=1000, name="later")  # a step is larger than that
    assert templates == {path: path.stat().st_mtime_ns for path in shelf.templates.iterdir()}
    assert all((disk.path / ".base").read_text() for disk in shelf.made)


async def test_destroy_frees_the_loop_device_and_removes_the_image(shelf: Shelf) -> None:
    """Also twice, and also while somebody holds a file of it: then with its last holder."""
    disk = await shelf.create(8 * MIB)
    assert len(loops(disk.image)) == 1
    held = (disk.path / "file").open("wb")

    await disk.destroy()
    await disk.destroy()
    assert not disk.image.exists()
    assert not disk.is_mounted()
    assert len(loops(disk.image)) == 1

    held.close()
    deadline = asyncio.get_running_loop().time() + 30
    while loops(disk.image):
        assert asyncio.get_running_loop().time() < deadline, "the loop device is still attached"
        await asyncio.sleep(0.01)


async def test_another_manager_takes_a_disk_up_as_it_is(shelf: Shelf) -> None:
    """Usage and files are in the image; the limit, which a mount forgets, is set again."""
    made = await shelf.create(16 * MIB, max_bytes=64 * MIB)
    (made.path / "file").write_bytes(b"x" * 4 * MIB)
    reserve = knob(made).read_text()
    knob(made).write_text("0")

    found = await shelf.disks.reopen(made.image, made.path)
    found.take_up(16 * MIB)

    assert knob(made).read_text() == reserve
    assert found.is_mounted()
    assert found.usage() == made.usage()
    found.resize(32 * MIB)
    assert 27 * MIB <= fill(found.path / "file") <= 28 * MIB


async def test_where_no_image_is_mounted_nothing_is_written(shelf: Shelf) -> None:
    """A reserve on the host's own disk would take that one's room."""
    image, mount_point = shelf.place("bare")
    disk = await shelf.disks.reopen(image, mount_point)

    assert not disk.is_mounted()
    with pytest.raises(FileNotFoundError):
        disk.resize(MIB)
    with pytest.raises(FileNotFoundError):
        disk.usage()
    (mount_point / ".base").write_text("0 0\n")  # and if somebody put one there
    with pytest.raises(DiskError, match="expected a loop device"):
        disk.resize(0)
    await disk.destroy()
    assert [path.name for path in mount_point.iterdir()] == [".base"]


@pytest.mark.parametrize("broken", ["no-mount-point", "image-exists", "too-small-for-its-limit"])
async def test_a_failed_create_leaves_nothing(shelf: Shelf, broken: str) -> None:
    """Image, mount and loop device are as before."""
    image, mount_point = shelf.place("disk")
    await shelf.create(MIB, inodes=1000, name="first")  # the template is there
    if broken == "no-mount-point":
        mount_point.rmdir()
    elif broken == "image-exists":
        image.write_text("somebody else's")
    else:
        template = next(shelf.templates.iterdir())
        os.truncate(template, MIB)

    with pytest.raises(OSError):
        await shelf.disks.create(image, mount_point, MIB, 1000)

    assert loops(image) == []
    assert not mount_point.is_mount()
    assert image.exists() == (broken == "image-exists")


def make_many(base: Path, name: str, start: object) -> None:
    """A manager of its own, in a process of its own."""

    async def work() -> None:
        shelf = Shelf(base / name)
        for n in range(15):
            await shelf.create(MIB, inodes=1000, name=f"d{n}")
        assert len({loop for disk in shelf.made for loop in loops(disk.image)}) == 15
        for disk in shelf.made:
            await disk.destroy()

    (base / name).mkdir()
    start.wait()  # type: ignore[attr-defined]
    asyncio.run(work())


def test_managers_race_for_loop_devices_and_none_loses(base_dir: Path) -> None:
    """Between the kernel's answer and its use another one may have taken the number."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    workers = [context.Process(target=make_many, args=(base_dir, f"m{n}", start)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]


# A full host. Admission keeps it from coming to that; the manager must stand it all the same.


@pytest_asyncio.fixture
async def small(base_dir: Path) -> AsyncIterator[Shelf]:
    """On a host whose disk has 24 MiB."""
    image, point = base_dir / "host.img", base_dir / "host"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    shelf = Shelf(point)
    yield shelf
    for disk in shelf.made:
        await disk.destroy()
    subprocess.run(["umount", "--lazy", str(point)], check=True)


async def test_on_a_full_host_no_disk_is_made_and_nothing_is_left(small: Shelf) -> None:
    """Neither from a template that is there, nor a template."""
    first = await small.create(MIB, inodes=1000, name="first")
    await first.destroy()
    image, mount_point = small.place("second")
    fill(small.base / "filler")
    before = sorted(path.name for path in small.base.rglob("*"))

    for inodes in (1000, 2000):
        with pytest.raises((OSError, DiskError)):
            await small.disks.create(image, mount_point, MIB, inodes)

    assert sorted(path.name for path in small.base.rglob("*")) == before
    (small.base / "filler").unlink()
    again = await small.create(MIB, inodes=1000, name="third")
    assert again.usage().bytes == 0


async def test_a_disk_on_a_host_that_fills_up_can_be_asked_changed_and_removed(small: Shelf) -> None:
    """The app's late writes are lost, as on any thin disk; the manager goes on, and gets its space back."""
    disk = await small.create(48 * MIB, inodes=1000)
    fill(small.base / "filler", 16 * MIB)
    fill(disk.path / "file", 32 * MIB)
    with pytest.raises(OSError, match=r"error|space"), (disk.path / "file").open() as file:
        os.fsync(file.fileno())  # the host cannot take it all, and here is who is told

    assert 31 * MIB <= disk.usage().bytes <= 33 * MIB
    disk.resize(16 * MIB)
    disk.resize(48 * MIB)

    await disk.destroy()
    (small.base / "filler").unlink()
    assert os.statvfs(small.base).f_bavail * os.statvfs(small.base).f_frsize > 12 * MIB
