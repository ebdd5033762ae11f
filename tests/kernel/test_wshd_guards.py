"""Checks in pid 1 that normal use never triggers: bounds of requests, who may connect, and what the host can see."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, ID_BASE, ID_COUNT, Box, running

pytestmark = pytest.mark.kernel

#: What is covered in every container, where this kernel has it; the tests of isolation read each for emptiness.
MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
    *("/sys/firmware", "/sys/devices/virtual/powercap", "/sys/devices/virtual/block"),
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@pytest.fixture(params=BUILDS)
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    yield from running(tmp_path, request.param)


def groups(count: int) -> tuple[str | int, ...]:
    return tuple(part for number in range(count) for part in ("group", 3000 + number))


def test_the_sixty_fifth_group_is_refused(box: Box) -> None:
    """The list has 64 places on pid 1's stack: what is longer must not be written there."""
    ended, out, _ = box.run("all", "/bin/id", "-G", keys=groups(64))
    assert ended == ["ok", "exit", "0"]
    assert out.split() == ["0", *(str(3000 + number) for number in range(64))]

    for count in (65, 200, 5000):
        reply = box.spawn("many", "/bin/true", keys=groups(count))
        assert reply.words[:2] == ["error", "EINVAL"], (count, reply.words)
        assert box.alive(), count


def test_a_terminal_for_nobody_costs_pid_1_no_descriptor(box: Box) -> None:
    """A user that is not mapped cannot own it; what was opened until then is closed."""
    open_now = Path(f"/proc/{box.pid}/fd")
    before = len(list(open_now.iterdir()))

    for _ in range(3):
        reply = box.spawn("shell", "/bin/true", keys=("io", "terminal", "uid", 4_000_000_000))
        assert reply.words[:2] == ["error", "EINVAL"], reply.words

    # our connections are closed by now, and it learns that in its own time
    deadline = time.monotonic() + 30
    while (count := len(list(open_now.iterdir()))) != before:
        assert time.monotonic() < deadline, f"{count} descriptors, {before} before"
        time.sleep(0.01)


def mount_points(box: Box) -> list[tuple[str, set[str], str]]:
    """Of pid 1, read from the host: mount point, options, type."""
    found = []
    for line in Path(f"/proc/{box.pid}/mountinfo").read_text().splitlines():
        fields = line.split()
        found.append((fields[4], set(fields[5].split(",")), fields[fields.index("-") + 1]))
    return found


def test_each_masked_path_has_a_mount_of_its_own(box: Box) -> None:
    """An empty answer proves nothing where the kernel shows nothing anyway; the mount over it does."""
    mounts = {point: (options, kind) for point, options, kind in mount_points(box)}
    there = [path for path in MASKED if Path(path).exists()]
    assert len(there) > 3, "this kernel has hardly one of the masked paths"
    for path in there:
        options, kind = mounts[path]
        assert kind == "tmpfs", path  # an empty directory, or the null device of the container's own /dev
        if Path(path).is_dir():
            assert {"ro", "nosuid", "nodev", "noexec"} <= options, path


def test_what_is_read_only_has_a_read_only_mount(box: Box) -> None:
    """The paths of /proc through which root inside would change the host."""
    mounts = {point: options for point, options, _ in mount_points(box)}
    for path in READ_ONLY:
        if Path(path).exists():
            assert {"ro", "nosuid", "nodev", "noexec"} <= mounts[path], path


def test_pid_1_is_not_dumpable(box: Box) -> None:
    """proc(5): the files of such a process belong to root, not to the process's own user."""
    assert Path(f"/proc/{box.pid}/environ").stat().st_uid == 0
    assert f"Uid:\t{ID_BASE + ID_COUNT - 1}\t" in Path(f"/proc/{box.pid}/status").read_text()


CONNECT = """
import os, socket, sys
folder = os.open(sys.argv[1], os.O_PATH)
os.setgroups([])
os.setresgid(*[int(sys.argv[2])] * 3)
os.setresuid(*[int(sys.argv[2])] * 3)
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.settimeout(30)
client.connect(f"/proc/self/fd/{folder}/wshd.sock")
try:
    print(client.recv(100)[:4])
except ConnectionResetError:
    print(b"")
"""


def greeting_for(box: Box, uid: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, box.folder, str(uid)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_an_id_of_the_container_is_not_served(box: Box, tmp_path: Path) -> None:
    """A process on the host that runs as one of the container's ids is none of its masters, even if it reaches the socket."""
    box.socket.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    assert greeting_for(box, 0) == "b'wshd'"
    # not 65534 inside: the kernel shows whoever is not mapped under that number too (SO_PEERCRED, overflowuid)
    for uid in (ID_BASE, ID_BASE + 2000, ID_BASE + ID_COUNT - 3):
        assert greeting_for(box, uid) == "b''", uid
    assert box.alive()


def test_the_socket_is_for_root_alone(box: Box) -> None:
    """Nobody else on the host may even connect."""
    assert box.socket.stat().st_mode & 0o777 == 0o600
