"""The manager reads and writes only on the container's own root and home, wherever a link of an app leads.

/proc and /sys inside answer the manager with the host's rights, and much of it looks like a regular file.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import app, close_empty, settings_for, sh
from depot_kit import depot as depot
from depot_kit import stack as stack

from container import Access, BindMount, Container, Depot, FileEntry, NotAFile, User

pytestmark = pytest.mark.kernel

FOREIGN = (
    "/proc/kmsg",
    "/proc/meminfo",
    "/proc/1/environ",
    "/proc/1/status",
    "/sys/kernel/uevent_seqnum",
    "/dev/shm/file",
    "/mnt/file",
    "/mnt",
)
#: A read of /proc/kmsg that is let through waits for the next line of the kernel's log.
PATIENCE_S = 20


@pytest_asyncio.fixture
async def box(depot: Depot, stack: Path, tmp_path: Path) -> Container:
    """With a home of its own and a directory of the host that anybody may write to."""
    droplet, host = tmp_path / "droplet", tmp_path / "host"
    droplet.mkdir()
    os.chown(droplet, User.VCAP.value, User.VCAP.value)
    host.mkdir(mode=0o777)
    host.chmod(0o777)
    (host / "file").write_text("host\n")
    spec = app(
        stack, handle="box", home_layers=(droplet,), binds=(BindMount(host, "/mnt", Access.READ_WRITE),)
    )
    made = await depot.create(spec)
    links = "".join(f"ln -s {path} /home/vcap/link{at};" for at, path in enumerate(FOREIGN))
    prepared = await made.run(
        sh(
            f"echo shm > /dev/shm/file; {links} cd /home/vcap; ln -s /proc proc; ln -s /mnt mnt; ln -s /dev/shm shm;"
            "echo own > own; ln -s /etc/passwd passwd; ln -s /home/vcap/own /tmp/home-link"
        )
    )
    assert prepared.status.ok, prepared.stderr
    return made


@pytest.mark.parametrize("at", range(len(FOREIGN)), ids=FOREIGN)
async def test_a_link_to_another_mount_is_not_read(box: Container, at: int) -> None:
    """By a link in the last place, by one in between, and by its own name."""
    name = FOREIGN[at]
    paths = [f"/home/vcap/link{at}", name]
    paths += [f"/home/vcap{name}"] if name.startswith(("/proc", "/mnt/")) else []
    for path in paths:
        with pytest.raises(NotAFile):
            await asyncio.wait_for(box.read_file(path, 100), PATIENCE_S)
        with pytest.raises(NotAFile):
            await box.path_fd(path)


async def test_links_between_root_and_home_are_read(box: Container) -> None:
    """Two mounts, both the container's own."""
    assert await box.read_file("/home/vcap/own", 100) == b"own\n"
    assert await box.read_file("/tmp/home-link", 100) == b"own\n"
    assert b"vcap" in await box.read_file("/home/vcap/passwd", 100)


@pytest.mark.parametrize("place", ["mnt", "mnt/new/deep", "shm", "proc/sys/kernel", "proc/self"])
async def test_a_link_to_another_mount_is_not_written(box: Container, place: str, tmp_path: Path) -> None:
    """Neither a file nor a missing directory is made there."""
    for path in (f"/home/vcap/{place}/file", f"/home/vcap/{place}/hostname"):
        with pytest.raises(NotAFile):
            await box.write_files(FileEntry(path, b"ours"))
    assert sorted(path.name for path in (tmp_path / "host").iterdir()) == ["file"]
    assert (tmp_path / "host/file").read_text() == "host\n"
    assert (await box.run(sh("cat /dev/shm/file; ls /dev/shm"))).stdout == b"shm\nfile\n"


async def test_after_its_end_the_home_is_read_and_nothing_else(box: Container) -> None:
    """Its tree is still held by the manager; links in it end there."""
    await box._body.kill()
    assert await box.read_file("/home/vcap/own", 100) == b"own\n"
    for at in range(len(FOREIGN)):
        with pytest.raises(OSError):
            await box.read_file(f"/home/vcap/link{at}", 100)


async def test_a_home_that_is_exchanged_before_a_restart(tmp_path: Path, stack: Path) -> None:
    """The next manager opens it anew: a link that root inside has put there does not become the home."""
    settings = settings_for(tmp_path)
    first = await Depot.open(settings)
    box = await first.create(app(stack, handle="box"))
    made = await box.run(sh("rm -rf /home/vcap && ln -s /proc /home/vcap", user=User.ROOT))
    assert made.status.ok, made.stderr
    await first.close()

    second = await Depot.open(settings)
    assert (await second.recover()).found == ("box",)
    found = second.find("box")
    with pytest.raises(NotAFile):
        await asyncio.wait_for(found.read_file("/home/vcap/kmsg", 100), PATIENCE_S)
    await found._body.kill()
    with pytest.raises(OSError):
        await asyncio.wait_for(found.read_file("/home/vcap/kmsg", 100), PATIENCE_S)
    await close_empty(second)
