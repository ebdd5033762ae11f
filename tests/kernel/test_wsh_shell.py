"""wsh, the shell client: status, signals, terminal, window size, and a container that ends while wsh runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, Box, program, read_until, running

pytestmark = pytest.mark.kernel


@pytest.fixture(params=BUILDS)
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    yield from running(tmp_path, request.param)


def wsh(box: Box, *words: str) -> list[str]:
    return [str(program(box.build, "wsh")), "--socket", str(box.socket), *words]


@pytest.mark.parametrize(
    ("argv", "status", "out"),
    [
        (["sh", "-c", "cat; exit 5"], 5, "typed"),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["/no/such"], 127, ""),
        (["/etc/passwd"], 126, ""),
        ([], 0, ""),
    ],
)
def test_wsh_behaves_as_a_shell_does(box: Box, argv: list[str], status: int, out: str) -> None:
    """wsh carries bytes both ways and the status out."""
    done = subprocess.run(
        [
            str(program(box.build, "wsh")),
            "--socket",
            box.socket,
            "--user",
            "2000:2000",
            "--cwd",
            "/home/vcap",
            "--",
            *argv,
        ],
        input="typed" if argv else "",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (status, out), done.stderr


def test_wsh_sends_signals_on(box: Box) -> None:
    """TERM to wsh is TERM to the job, and its status comes back."""
    command = [str(program(box.build, "wsh")), "--socket", str(box.socket), "sh", "-c"]
    script = "trap 'echo got; exit 9' TERM; echo on; while :; do sleep 0.01; done"
    with subprocess.Popen(
        [*command, script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.terminate()
        assert process.stdout.read() == "got\n"
    assert process.returncode == 9


def test_wsh_without_a_container_says_125(tmp_path: Path) -> None:
    """A container that cannot be reached has a status of its own."""
    done = subprocess.run(
        [program("static", "wsh"), "--socket", tmp_path / "none", "true"], capture_output=True
    )
    assert done.returncode == 125
    assert done.stderr


def test_wsh_terminal(box: Box) -> None:
    """With a terminal wsh gives one inside, and its own is as before afterwards."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    command = [str(program(box.build, "wsh")), "--socket", str(box.socket), "sh"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
        os.write(master, b"tty; echo a''b; exit 6\n")
        text = read_until(master, b"ab\r\n")
    assert b"/dev/pts/" in text
    assert process.returncode == 6
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_wsh_carries_a_new_window_size(box: Box) -> None:
    """The size at the start is the terminal's, and a change of it is a signal inside."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    script = "trap 'stty size; exit 4' WINCH; stty size; while :; do sleep 0.01; done"
    with subprocess.Popen(wsh(box, "sh", "-c", script), stdin=slave, stdout=slave, stderr=slave) as process:
        read_until(master, b"30 100\r\n")
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
        process.send_signal(signal.SIGWINCH)
        read_until(master, b"40 120\r\n")
    assert process.returncode == 4
    os.close(master)
    os.close(slave)


def test_wsh_gives_the_terminal_back_when_the_container_dies(tmp_path: Path) -> None:
    """Status 125, and the terminal as it was."""
    for build in BUILDS:
        box = Box.prepare(tmp_path / build, build).launch()
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        command = wsh(box, "sh", "-c", "echo on; exec sleep 1000")
        with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
            read_until(master, b"on\r\n")
            box.kill()
            read_until(master, b"wsh: no exit status: the container has ended\r\n")
        assert process.returncode == 125
        assert termios.tcgetattr(slave) == before
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("holder", ["sleep 1000", "yes"])
def test_wsh_ends_with_its_job_while_another_holds_the_terminal(box: Box, holder: str) -> None:
    """Whoever was left on it and ignores the hang-up, silent or not: what the job itself has written is there, and wsh goes."""
    master, slave = pty.openpty()
    script = f"seq 500; echo on; trap '' HUP; {holder} & exit 3"
    process = subprocess.Popen(wsh(box, "sh", "-c", script), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    text = b""
    with contextlib.suppress(OSError):  # EIO: wsh has gone
        while data := os.read(master, 65536):
            text += data
    assert process.wait(30) == 3
    assert text.split(b"\r\n")[:501] == [*(b"%d" % number for number in range(1, 501)), b"on"]
    os.close(master)


def test_a_stop_does_not_wait_for_an_open_shell(box: Box) -> None:
    """A shell ignores TERM; the end of its terminal is what it leaves at, and who sat before it reads why."""
    master, slave = pty.openpty()
    script = "trap '' TERM; echo on; read line; exit 7"
    with subprocess.Popen(wsh(box, "sh", "-c", script), stdin=slave, stdout=slave, stderr=slave) as process:
        read_until(master, b"on\r\n")
        with box.client() as client:
            client.socket.settimeout(60)
            assert client.ask("stop", 3_600_000).words == ["ok"]
        read_until(master, b"wsh: hung up: the container is being stopped\r\n")
    assert process.returncode == 128 + signal.SIGHUP
    os.close(master)
    os.close(slave)


def test_wsh_of_another_version_is_told(tmp_path: Path) -> None:
    """Who does not greet as wshd of version 1 is not spoken to."""

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def greet() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.send(b"wshd\x002\0box\0")

        thread = threading.Thread(target=greet)
        thread.start()
        command = [str(program("asan", "wsh")), "--socket", str(tmp_path / "s"), "true"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        thread.join()
    assert (
        done.returncode,
        done.stderr.rstrip().endswith("expected a wshd of protocol version 1 there"),
    ) == (
        125,
        True,
    )
