"""wshd from plan to `ready`; the message of a launch that fails, and that it leaves nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, Box, LaunchError

pytestmark = pytest.mark.kernel


@pytest.fixture(params=BUILDS)
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    box = Box.prepare(tmp_path, request.param)
    yield box
    box.kill()


def test_launch_serves_and_ends_with_pid_1(box: Box) -> None:
    """After `ready` the socket greets with version and handle, and a dead pid 1 refuses connections."""
    box.launch()
    with box.client() as client:
        assert client.greeting == ["wshd", "1", "box"]
        assert client.ask("ping").words == ["ok"]
    box.kill()
    with pytest.raises(ConnectionRefusedError):
        box.client()


def test_run_gives_output_and_status(box: Box) -> None:
    """A job's streams reach their files, and its status its record."""
    box.launch()
    ended, out, err = box.run("one", "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ended, out, err) == (["ok", "exit", "7"], "out\n", "err\n")
    assert box.spool("one").lines()[0] == "exit 7"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("bogus", "1"), "bogus"),
        (("layer",), "layer"),
        (("bind", "/no/such/dir", "/mnt", "ro"), "ENOENT"),
        (("file", "/etc/x", "9", "text"), "file"),
        (("overlay", "no_such_option=1"), "no_such_option"),
        (("overlay", ",".join(f"o{number}=1" for number in range(9))), "overlay"),
        (("version", "2"), "version: expected 1, got 2"),
        (("bounding", "200000"), "CAP_SYS_ADMIN"),
        (("file", "/" + "x" * 5000, "644", ""), "x"),
        (("bind", "/etc", "/mnt/../../etc", "ro"), "mount point"),
        (("seccomp", "0600"), "seccomp"),
    ],
)
def test_a_bad_plan_is_named_and_leaves_nothing(box: Box, extra: tuple[str, ...], said: str) -> None:
    """A launch that fails prints one line that names what was wrong, exits 1, and leaves no socket."""
    with pytest.raises(LaunchError, match=said) as caught:
        box.launch(*extra)
    assert str(caught.value).startswith("exit 1: wshd: ")
    assert str(caught.value).count("\n") == 1
    assert not box.socket.exists()


def test_a_mount_point_that_is_a_link_is_refused(box: Box) -> None:
    """A stack whose /sys is a link cannot lead a mount elsewhere."""
    (box.stack / "sys").symlink_to("etc")
    with pytest.raises(LaunchError, match="sys"):
        box.launch()


def test_a_socket_of_another_is_not_touched(box: Box) -> None:
    """The path is taken: refused, and what is there stays."""
    box.socket.write_text("somebody's")
    with pytest.raises(LaunchError, match="EADDRINUSE"):
        box.launch()
    assert box.socket.read_text() == "somebody's"


def test_a_mount_point_of_two_thousand_levels(box: Box) -> None:
    """Made one by one, without a call for each on the stack."""
    path = "/d" * 2000
    box.launch("bind", str(box.stack / "etc"), path, "ro")
    assert box.shell("read", f"cat {path}/lower") == "from the stack\n"
    box.kill()
    subprocess.run(["rm", "-rf", box.folder / "disk"], check=True)


def test_a_protection_that_cannot_be_lowered_is_no_reason_to_fail(box: Box) -> None:
    """Without CAP_SYS_RESOURCE the manager's oom_score_adj stays when it is above zero."""
    box.under = ("choom", "-n", "300", "--", "setpriv", "--bounding-set", "-sys_resource", "--")
    box.launch()
    assert Path(f"/proc/{box.pid}/oom_score_adj").read_text() in ("0\n", "300\n")


def test_closed_standard_descriptors_are_nobody_elses(box: Box) -> None:
    """Started with its standard input closed, pid 1 and a job have /dev/null there."""
    box.under = ("/bin/sh", "-c", 'exec "$0" "$@" <&-')
    box.launch()
    opened = {number: os.readlink(f"/proc/{box.pid}/fd/{number}") for number in (0, 1)}
    assert opened == {0: "/dev/null", 1: "/dev/null"}
    assert box.shell("job", "readlink /proc/self/fd/0") == "/dev/null\n"


@pytest.mark.parametrize("word", [b"", b"stop\n", b"go"])
def test_launch_ends_with_its_standard_input(box: Box, word: bytes) -> None:
    """Without a whole `go` the launch is over, and its pid 1 with it."""
    net = ("net", "veth", "eth0", "10.254.0.2", 30, "10.254.0.1", "02:00:00:00:00:01", 1500)
    process = box.start(box.plan(net=net), stdin=subprocess.PIPE)
    assert process.stdout is not None
    pid = int(process.stdout.readline().split()[1])
    pidfd = os.pidfd_open(pid)
    out, err = process.communicate(word, timeout=30)
    assert process.returncode == 1
    assert b"ready" not in out
    assert err.startswith(b"wshd: ")
    import select

    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(10_000), "pid 1 outlived its launcher"
    os.close(pidfd)
    assert not box.socket.exists()
