"""What the manager gives to wshd: cgroups to join, a veth, and a mount for a running container."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, Box, running

pytestmark = pytest.mark.kernel
SYS_OPEN_TREE = 428
OPEN_TREE_CLONE = 1
GATEWAY_MAC = "02:00:00:00:00:01"


def cgroup_mounts() -> Iterator[Path]:
    """The mount point of each hierarchy that a process can join without more ado."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        if kind == "cgroup2" or (kind == "cgroup" and "cpuset" not in fields[-1]):
            yield Path(fields[4])


@pytest.fixture
def leaves() -> Iterator[list[tuple[str, Path]]]:
    """A group with the leaves `init` and `job` in each hierarchy of the host."""
    made = []
    for mount in sorted(set(cgroup_mounts())):  # a test host may have a mount twice
        group = mount / f"wshd-test-{os.getpid()}"
        for path in (group, group / "init", group / "job"):
            path.mkdir()
            made.append(path)
    assert made, "no cgroup hierarchy is mounted"
    yield [(path.name, path) for path in made if path.name in ("init", "job")]
    for path in reversed(made):
        path.rmdir()


@pytest.mark.parametrize("build", BUILDS)
def test_cgroups(tmp_path: Path, leaves: list[tuple[str, Path]], build: str) -> None:
    """Pid 1 is in every `init`, a job in every `job`, and the job sees the roots of its hierarchies as its own."""
    words = []
    for name, path in leaves:
        join = path / "tasks"
        words += [f"cgroup-{name}", str(join if join.exists() else path / "cgroup.procs")]
    for box in running(tmp_path, build, *words):
        box.spawn("job", "/bin/sleep", "60")
        job = box.client().ask("list").words[4]
        for name, path in leaves:
            members = (path / "cgroup.procs").read_text().split()
            if name == "init":
                assert members == [str(box.pid)]
            else:
                (inside,) = members
                status = Path(f"/proc/{inside}/status").read_text()
                assert f"NSpid:\t{inside}\t{job}\n" in status
        seen = {line.rpartition(":")[2] for line in box.shell("see", "cat /proc/self/cgroup").splitlines()}
        handled = {path.parent.parent for _, path in leaves}
        assert "/" in seen
        assert len(handled) * 2 == len(leaves)
        assert not [path for path in seen if "wshd-test" in path]


def test_a_frozen_job_cgroup_holds_up_only_those_who_need_it(
    tmp_path: Path, leaves: list[tuple[str, Path]]
) -> None:
    """While jobs are frozen a spawn waits and a ping is answered; thawed, the spawn goes on."""
    jobs = [path for name, path in leaves if name == "job"]
    old = [path for path in jobs if (path / "freezer.state").exists()]
    job = old[0] if old else next(path for path in jobs if (path / "cgroup.freeze").exists())
    switch, freeze, thaw = (
        (job / "freezer.state", "FROZEN", "THAWED") if old else (job / "cgroup.freeze", "1", "0")
    )
    join = "tasks" if old else "cgroup.procs"
    init = job.parent / "init"
    for box in running(tmp_path, "static", "cgroup-init", str(init / join), "cgroup-job", str(job / join)):
        switch.write_text(freeze)
        try:
            with box.client() as waiting, box.client() as other, box.spool("job").opened() as fds:
                request = ("spawn", "job", "arg", "/bin/true", "fd", "stdout", "fd", "stderr", "fd", "record")
                waiting.send(*request, fds=fds)
                assert other.ask("ping").words == ["ok"]
                waiting.socket.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    waiting.receive()
                switch.write_text(thaw)
                waiting.socket.settimeout(30)
                assert waiting.receive().words[:2] == ["ok", "started"]
        finally:
            switch.write_text(thaw)
        assert box.wait("job") == ["ok", "exit", "0"]


@pytest.mark.parametrize("build", BUILDS)
def test_veth(tmp_path: Path, build: str) -> None:
    """After `go` eth0 has address, mtu, route and a permanent neighbour, no IPv6, and a packet comes back."""
    box = Box.prepare(tmp_path, build)
    net = ("net", "veth", "eth0", "10.254.7.2", 30, "10.254.7.1", GATEWAY_MAC, 1400)
    process = box.start(box.plan(net=net), stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    box.pid = int(process.stdout.readline().split()[1])
    try:
        host = f"wt{os.getpid()}"
        add = ["ip", "link", "add", host, "address", GATEWAY_MAC, "mtu", "1400", "type", "veth"]
        subprocess.run([*add, "peer", "name", "eth0", "netns", str(box.pid)], check=True)
        subprocess.run(["ip", "address", "add", "10.254.7.1/30", "dev", host], check=True)
        subprocess.run(["ip", "link", "set", host, "up"], check=True)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        assert process.wait(30) == 0
        text = box.shell("addr", "ip addr show eth0; ip route; ip neigh show dev eth0")
        assert "inet 10.254.7.2/30" in text
        assert "mtu 1400" in text
        assert "inet6" not in text
        assert "default via 10.254.7.1 dev eth0" in text
        assert f"10.254.7.1 lladdr {GATEWAY_MAC}" in text
        assert "PERMANENT" in text
        with pytest.raises(ConnectionRefusedError):  # an answer of the container's own
            socket.create_connection(("10.254.7.2", 9), timeout=10)
    finally:
        process.communicate()
        box.kill()


@pytest.mark.parametrize("build", BUILDS)
def test_attach(tmp_path: Path, build: str) -> None:
    """A detached mount of the host's appears at a path of a running container; a link there is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    source = tmp_path / "layer"
    source.mkdir()
    (source / "file").write_text("handed in\n")
    for box in running(tmp_path, build):
        box.shell("point", "mkdir /mnt /mnt/here; ln -s /mnt/here /link")
        for path, words in (
            ("/link", ["error", "ELOOP"]),
            ("/none", ["error", "ENOENT"]),
            ("/mnt/here", ["ok"]),
        ):
            tree = libc.syscall(SYS_OPEN_TREE, -100, str(source).encode(), OPEN_TREE_CLONE | os.O_CLOEXEC)
            assert tree >= 0, os.strerror(ctypes.get_errno())
            with box.client() as client:
                assert client.ask("attach", path, fds=[tree]).words[:2] == words
            os.close(tree)
        assert box.shell("see", "cat /mnt/here/file") == "handed in\n"


def test_launch_by_arguments_hides_them(tmp_path: Path) -> None:
    """A plan given as arguments works the same, and none of it stays in the process title."""
    box = Box.prepare(tmp_path, "static")
    words = box.plan(net=()).split(b"\0")[:-1]
    from wshd_driver import program

    done = subprocess.run([program("static"), "--no-net", "--args", *words], capture_output=True, timeout=30)
    try:
        assert done.returncode == 0, done.stderr
        box.pid = int(done.stdout.split()[1])
        assert box.shell("look", "tr -d '\\0' </proc/1/cmdline").endswith("--args")
    finally:
        box.kill()
