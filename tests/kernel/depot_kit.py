"""Helpers of the depot's kernel tests: a root file system of busybox, a depot, and the check that nothing is left of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import testhost
from static_c import FORK_BOMB, build_static
from wshd_driver import BUILDS, program

from container import ContainerSpec, Depot, DepotSettings, JobSpec, Limits, User

SCALE = int(os.environ.get("GARRISON_TEST_SCALE", "1"))
ENV = ("PATH=/bin:/sbin:/usr/bin", "HOME=/home/vcap")


def make_stack(directory: Path) -> Path:
    """busybox with its applets, vcap, and the directories that wshd mounts on."""
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "home/vcap", "root", "usr/bin", "var"):
        (directory / name).mkdir(parents=True)
    shutil.copy(
        "/usr/bin/busybox" if Path("/usr/bin/busybox").exists() else "/bin/busybox", directory / "bin/busybox"
    )
    for applet in subprocess.run(
        ["busybox", "--list"], capture_output=True, text=True, check=True
    ).stdout.split():
        if applet != "busybox":
            (directory / "bin" / applet).symlink_to("busybox")
    build_static(FORK_BOMB, directory / "bin/fork-bomb")
    (directory / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nvcap:x:2000:2000::/home/vcap:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\nvcap:x:2000:\n")
    (directory / "home/vcap/from-stack").write_text("stack\n")
    os.chown(directory / "home/vcap", 2000, 2000)
    (directory / "tmp").chmod(0o1777)
    return directory


def settings_for(base: Path, **changes: object) -> DepotSettings:
    """A depot below ``base``; a cgroup parent of our own. What is in the depot is compared after each test."""
    testhost.own_depots.add(base / "depot")
    values: dict[str, object] = {
        "depot_dir": base / "depot",
        "templates_dir": base.parent / "templates",  # made once for all tests of a session
        "cgroup_parent": f"garrison-test-{os.getpid()}",
        "release_delay_s": 0.0,
        "dns_servers": ("9.9.9.9",),
    }
    return DepotSettings(**{**values, **changes})  # type: ignore[arg-type]


def sh(script: str, **changes: object) -> JobSpec:
    """A job of the shell, as vcap unless told."""
    values: dict[str, object] = {"argv": ("/bin/sh", "-c", script), "env": ENV, "cwd": "/", "user": User.VCAP}
    return JobSpec(**{**values, **changes})  # type: ignore[arg-type]


def app(stack: Path, **changes: object) -> ContainerSpec:
    return ContainerSpec(**{"layers": (stack,), **changes})  # type: ignore[arg-type]


def remains(settings: DepotSettings) -> list[str]:
    """What is there of containers of this depot: directories, mounts, loop devices, cgroups, links."""
    found = (
        [f"directory {path}" for path in settings.depot_dir.iterdir()] if settings.depot_dir.exists() else []
    )
    mark = str(settings.depot_dir)
    found += [
        f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if mark in line
    ]
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if mark in (text := loop.read_text()):
                found.append(f"loop {loop.parent.parent.name} {text.strip()}")
        except OSError:  # it has just been detached
            continue
    for pattern in (settings.cgroup_parent, f"*/{settings.cgroup_parent}"):  # v2, v1
        for parent in Path("/sys/fs/cgroup").glob(pattern):
            found += [f"cgroup {path}" for path in parent.iterdir() if path.is_dir()]
    return found


def links() -> list[str]:
    """Interfaces of containers in this network namespace (/sys shows the namespace that mounted it)."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return [name for line in lines if (name := line.split(":")[0].strip()).startswith("w-")]


async def nothing_left(settings: DepotSettings, *, within_s: float = 10.0) -> None:
    """The kernel takes loop devices and links back a little later than asked: looked at until they are
    gone.
    """
    await until(
        lambda: not remains(settings) and not links(),
        lambda: f"left: {remains(settings)} {links()}",
        within_s,
    )


async def until(fact: Callable[[], bool], told: Callable[[], str], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, told()
        await asyncio.sleep(0.01)


def leases_in_use(depot: Depot) -> int:
    host = depot._shared
    return len(host.addresses.in_use) + len(host.ids.in_use)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stack(tmp_path_factory.mktemp("stack"))


#: A module's mark: its containers are made twice, by the wshd that is installed and by the one with the sanitizers.
BOTH_BUILDS = pytest.mark.parametrize("depot", BUILDS, indirect=True)


@pytest_asyncio.fixture
async def depot(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Depot]:
    """A depot of its own, which must be empty again in the end."""
    build = getattr(request, "param", "static")
    opened = await Depot.open(settings_for(tmp_path, wshd_binary=program(build)))
    yield opened
    await close_empty(opened)


async def close_empty(depot: Depot) -> None:
    """Destroys what is there and closes; nothing may be left, on the host or in the pools."""
    for handle in depot.handles():
        await depot.destroy(handle)
    await nothing_left(depot.settings)
    await until(lambda: leases_in_use(depot) == 0, lambda: f"leases left: {leases_in_use(depot)}")
    await depot.close(remove_tables=True)


@pytest_asyncio.fixture
async def left(tmp_path: Path, stack: Path) -> AsyncIterator[Path]:
    """A depot's base that a manager has left, with one container in it: `left`."""
    depot = await Depot.open(settings_for(tmp_path))
    await depot.create(app(stack, handle="left", limits=Limits(memory_bytes=64 << 20)))
    await depot.close()
    yield tmp_path
    again = await Depot.open(settings_for(tmp_path))
    await again.recover()
    await close_empty(again)
