"""Disks of an older release, which are limited by a ballast file: they are taken up unchanged while their containers live."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from depot_kit import app, close_empty, settings_for, sh
from depot_kit import stack as stack
from disk_kit import BLOCK, MIB, fill

from container import Depot, Limits, linux
from container.disk import Disk, DiskError, Disks
from container.disk.ballast import BALLAST, BallastDisk
from container.disk.image import mount_image

pytestmark = pytest.mark.kernel


def make_one(image: Path, mount_point: Path, limit_bytes: int) -> None:
    """As the former manager made them: 16 GiB, and all but the limit preallocated."""
    with image.open("wb") as file:
        file.truncate(16 << 30)
    argv = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-N", "5024"]
    argv += ["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", str(image)]
    subprocess.run(argv, check=True)
    with linux.loop_device(image) as device:
        mount_image(device, mount_point)
    (mount_point / "lost+found").rmdir()
    (mount_point / BALLAST).touch(mode=0o600)
    seen = os.statvfs(mount_point)
    base_bytes = (seen.f_blocks - seen.f_bfree + 1) * seen.f_frsize
    (mount_point / ".base").write_text(f"{base_bytes} {seen.f_files - seen.f_ffree + 1}\n")
    free = os.statvfs(mount_point).f_bavail * seen.f_frsize
    with (mount_point / BALLAST).open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, free - limit_bytes)


async def test_its_limit_and_usage_are_what_they_were_and_it_can_be_changed(base_dir: Path) -> None:
    """Both ways, and past what it was formatted for it is refused as ever."""
    image, mount_point = base_dir / "disk.img", base_dir / "disk"
    mount_point.mkdir()
    make_one(image, mount_point, 16 * MIB)
    (base_dir / "templates").mkdir()
    disk = await Disks(base_dir / "templates").reopen(image, mount_point)
    try:
        assert isinstance(disk, BallastDisk)
        assert disk.is_mounted()
        disk.take_up(16 * MIB)
        assert (disk.usage().bytes, disk.usage().inodes) == (0, 0)
        assert 15 * MIB <= fill(disk.path / "file") <= 16 * MIB + 16 * BLOCK
        assert 15 * MIB <= disk.usage().bytes <= 16 * MIB + 16 * BLOCK

        disk.resize(48 * MIB)
        assert 31 * MIB <= fill(disk.path / "file") <= 33 * MIB
        disk.resize(8 * MIB)
        assert fill(disk.path / "file") == 0
        with pytest.raises(DiskError, match="fixed at create"):
            disk.resize(1 << 40)
    finally:
        await disk.destroy()
    assert not image.exists()


async def test_changes_of_it_at_once_leave_one_of_them(base_dir: Path) -> None:
    """Each measures before it acts, so they take turns."""
    image, mount_point = base_dir / "disk.img", base_dir / "disk"
    mount_point.mkdir()
    make_one(image, mount_point, 16 * MIB)
    disk = BallastDisk(image, mount_point)
    limits = [8 * MIB, 64 * MIB] * 5
    try:
        await asyncio.gather(*(asyncio.to_thread(disk.resize, limit) for limit in limits))

        free = os.statvfs(mount_point).f_bavail * BLOCK
        assert min(abs(free - limit) for limit in set(limits)) <= MIB // 4
    finally:
        await disk.destroy()


async def test_its_container_is_taken_up_with_it(
    tmp_path: Path, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade keeps the app, its files and its limit; it ends as any other."""

    async def create(
        _: Disks, image: Path, mount_point: Path, limit_bytes: int, *_args: object, **_kw: object
    ) -> Disk:
        await asyncio.to_thread(make_one, image, mount_point, limit_bytes)
        return BallastDisk(image, mount_point)

    settings = settings_for(tmp_path)
    first = await Depot.open(settings)
    with monkeypatch.context() as former:
        former.setattr(Disks, "create", create)
        made = await first.create(app(stack, handle="old", limits=Limits(disk_bytes=16 * MIB)))
    assert (await made.run(sh("echo kept > /home/vcap/file"))).status.ok
    await first.close()

    second = await Depot.open(settings)
    assert (await second.recover()).found == ("old",)
    box = second.find("old")
    assert (await box.run(sh("cat /home/vcap/file"))).stdout == b"kept\n"
    assert (await box.info()).disk_bytes < MIB
    full = "dd if=/dev/zero of=/home/vcap/big bs=64k 2>&1 | grep -c 'No space'"
    assert (await box.run(sh(full))).stdout == b"1\n"
    assert 15 * MIB <= (await box.info()).disk_bytes <= 16 * MIB + 16 * BLOCK
    await box.limit_disk(32 * MIB)
    more = "dd if=/dev/zero of=/home/vcap/more bs=64k count=200"
    assert (await box.run(sh(more))).status.ok
    await close_empty(second)


async def test_a_mount_point_without_one_is_no_ballast_disk(base_dir: Path) -> None:
    """What is gone in part is removed whatever it was."""
    (base_dir / "templates").mkdir()
    disk = await Disks(base_dir / "templates").reopen(base_dir / "no.img", base_dir / "nowhere")

    assert type(disk) is Disk
    await disk.destroy()
    linux.unmount(base_dir / "nowhere")
