"""A job of wsh gets bytes from its caller, and none of the caller's descriptors."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, ID_BASE, Box, program, read_until, running

pytestmark = pytest.mark.kernel
USERS = pytest.mark.parametrize("user", ["0:0", "2000:2000"], ids=["root", "vcap"])
REOPEN = (
    "cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr; echo fd1 > /proc/self/fd/1; echo fd2 > /proc/self/fd/2;"
    "cat < /proc/self/fd/0"
)


@pytest.fixture(params=BUILDS)
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    yield from running(tmp_path, request.param)


def wsh(box: Box, *words: str) -> list[str]:
    return [str(program(box.build, "wsh")), "--socket", str(box.socket), *words]


@USERS
def test_a_job_opens_its_streams_again(box: Box, user: str) -> None:
    """By /dev and by /proc/self/fd: the pipes are its user's own."""
    command = wsh(box, "--user", user, "sh", "-c", REOPEN)
    done = subprocess.run(command, input=b"in\n", capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in\nout\nfd1\n", b"err\nfd2\n")


@USERS
def test_a_job_opens_its_terminal_again(box: Box, user: str) -> None:
    """The same with a terminal, which is the container's own."""
    master, slave = pty.openpty()
    script = "head -n 1 /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr; echo tty > /dev/tty; tty < /proc/self/fd/0"
    with subprocess.Popen(
        wsh(box, "--user", user, "sh", "-c", script), stdin=slave, stdout=slave, stderr=slave
    ):
        os.write(master, b"typed\n")
        text = read_until(master, b"/dev/pts/")
    assert [word for word in text.split() if word != b"typed"][:3] == [b"out", b"err", b"tty"]
    os.close(master)
    os.close(slave)


@USERS
@pytest.mark.parametrize("io", ["spool", "direct"])
def test_jobs_of_the_manager_open_their_streams_again(box: Box, user: str, io: str) -> None:
    """On the spool and on pipes, which the manager makes for the job's user."""
    uid = int(user.partition(":")[0])
    keys = ("uid", uid, "gid", uid)
    if io == "spool":
        ended, out, err = box.run("job", "/bin/sh", "-c", REOPEN, keys=keys)
        assert (ended, out, err) == (["ok", "exit", "0"], "out\nfd1\n", "err\nfd2\n")
        return
    record = os.memfd_create("record")
    pipes = [os.pipe() for _ in range(3)]
    for read_end, _ in pipes:
        os.fchown(read_end, ID_BASE + uid, ID_BASE + uid)
    theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
    with box.client() as client:
        words = ("spawn", "job", "io", "direct", "arg", "/bin/sh", "arg", "-c", "arg", REOPEN)
        names = ("fd", "stdin", "fd", "stdout", "fd", "stderr", "fd", "record")
        assert client.ask(*words, *names, *keys, fds=[*theirs, record]).ok
    for fd in (*theirs, record):
        os.close(fd)
    os.write(pipes[0][1], b"in\n")
    os.close(pipes[0][1])
    found = []
    for read_end, _ in pipes[1:]:
        with os.fdopen(read_end, "rb") as stream:
            found.append(stream.read())
    assert found == [b"in\nout\nfd1\n", b"err\nfd2\n"]


def test_nothing_of_the_callers_is_there(box: Box, tmp_path: Path) -> None:
    """A file, a file and another file outside; three pipes inside, that are none of them."""
    paths = [tmp_path / name for name in ("in", "out", "err")]
    paths[0].write_text("")
    with paths[0].open() as stdin, paths[1].open("a") as stdout, paths[2].open("a") as stderr:
        script = "for n in 0 1 2; do readlink /proc/$$/fd/$n; done; set -- /proc/self/fd/*; echo $#"
        subprocess.run(
            wsh(box, "sh", "-c", script), stdin=stdin, stdout=stdout, stderr=stderr, timeout=60, check=True
        )
    *links, count = paths[1].read_text().split()
    assert len(set(links)) == 3
    assert all(link.startswith("pipe:[") for link in links)
    assert count == "4", "and the directory that the shell reads"


def test_a_log_file_cannot_be_truncated(box: Box, tmp_path: Path) -> None:
    """`>> log`: what stands in it stays, whatever the job does to its descriptors."""
    log = tmp_path / "log"
    log.write_text("before\n")
    script = "echo said; : > /dev/stdout; : > /proc/self/fd/1; echo more"
    with log.open("a") as out:
        subprocess.run(
            wsh(box, "sh", "-c", script), stdin=subprocess.DEVNULL, stdout=out, timeout=60, check=True
        )
    assert log.read_text() == "before\nsaid\nmore\n"


def test_who_is_left_behind_reads_nothing_more_and_holds_up_nobody(box: Box) -> None:
    """The caller goes on with its own input and output; the job that stays has pipes without another end."""
    read_end, write_end = os.pipe()
    script = "trap '' PIPE; exec 3<&0; (cat <&3 > /tmp/stolen; echo late; echo on > /tmp/done) 2>/dev/null & echo said"
    done = subprocess.run(
        wsh(box, "sh", "-c", script), stdin=read_end, stdout=subprocess.PIPE, timeout=60, check=True
    )
    assert done.stdout == b"said\n"
    os.write(write_end, b"typed afterwards\n")
    os.close(write_end)
    with os.fdopen(read_end, "rb") as mine:
        assert mine.read() == b"typed afterwards\n"
    assert box.shell("look", "while ! [ -s /tmp/done ]; do sleep 0.01; done; cat /tmp/stolen") == ""


def test_who_writes_for_ever_after_the_end_is_cut(box: Box) -> None:
    """What was written by the end is there; the rest is nobody's."""
    done = subprocess.run(
        wsh(box, "sh", "-c", "yes & echo first >&2; exit 4"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (4, b"first\n")
    assert len(done.stdout) < 1 << 22


def test_both_ways_at_once_and_much(box: Box) -> None:
    """Neither side waits for the other: eight MiB through `cat`, read by a caller that writes first."""
    data = os.urandom(8 << 20)
    process = subprocess.Popen(wsh(box, "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None

    def write() -> None:
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    assert process.stdout.read() == data
    writer.join()
    assert process.wait(30) == 0
    process.stdout.close()


def test_a_slow_reader_loses_nothing(box: Box) -> None:
    """The job has long ended when its output is read."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(wsh(box, "seq", "9000"), stdin=subprocess.DEVNULL, stdout=write_end)
    os.close(write_end)
    box.shell("gone", "while ps | grep -q '[s]eq 9000'; do sleep 0.01; done")
    with os.fdopen(read_end, "rb") as stream:
        assert stream.read().split() == [b"%d" % number for number in range(1, 9001)]
    assert process.wait(30) == 0


def test_who_stops_reading_ends_the_job(box: Box) -> None:
    """As in `program | head -n 1`: the job's next write is its end, and its status says so."""
    process = subprocess.Popen(wsh(box, "yes"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    assert process.wait(30) == 128 + signal.SIGPIPE


def test_closed_descriptors_are_no_end(box: Box) -> None:
    """A caller without standard descriptors."""
    command = wsh(box, "sh", "-c", "cat; echo out; exit 3")
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&-', "sh", *command], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, b"")


def test_the_environment_comes_by_a_descriptor(box: Box) -> None:
    """Words with blanks, quotes and lines; more than a pipe holds; nothing of it in the arguments that all of the host may read."""
    secret = "s3cret word\n'second line'"
    words = [f"SECRET={secret}", "EMPTY=", *(f"V{number}={'x' * 4000}" for number in range(150))]
    fd = os.memfd_create("environment", 0)
    os.write(fd, b"".join(word.encode() + b"\0" for word in words))
    os.lseek(fd, 0, os.SEEK_SET)
    script = 'printf "%s|" "$SECRET" "$EMPTY"; env | wc -c; set -- /proc/self/fd/*; echo $#; read line'
    process = subprocess.Popen(
        wsh(box, "--env-fd", str(fd), "sh", "-c", script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(fd,),
    )
    os.close(fd)
    assert process.stdin is not None
    assert process.stdout is not None
    first = process.stdout.readline() + process.stdout.readline()
    assert first.startswith(f"{secret}||".encode())
    for name in ("cmdline", "environ"):
        assert b"s3cret" not in Path(f"/proc/{process.pid}/{name}").read_bytes()
    process.stdin.close()
    assert int(first.rpartition(b"|")[2]) > 150 * 4000
    assert process.stdout.read() == b"4\n", "three streams, and the directory that the shell reads"
    process.stdout.close()
    assert process.wait(30) == 1, "`read` has met the end"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"A=b", "expected K=V words that each end with a NUL"),
        (b"A=b\0" * (1 << 19), "expected at most 1 MiB, got more"),
    ],
)
def test_a_broken_environment_is_refused(box: Box, data: bytes, said: str) -> None:
    """With the status of wsh itself."""
    fd = os.memfd_create("environment", 0)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    done = subprocess.run(
        wsh(box, "--env-fd", str(fd), "true"), capture_output=True, text=True, pass_fds=(fd,), timeout=60
    )
    os.close(fd)
    assert (done.returncode, done.stderr) == (125, f"wsh: --env-fd: {said}\n")


@pytest.mark.parametrize(
    ("names", "kind", "said"),
    [
        (("stdin",), "file", "stdin must be a pipe or a sealed memfd"),
        (("stdin",), "memfd", "stdin must be a pipe or a sealed memfd"),
        (("stdin",), "tty", "stdin must be a pipe or a sealed memfd"),
        (("stdout",), "file", "stdout and stderr of a direct job must be pipes"),
        (("stderr",), "sealed", "stdout and stderr of a direct job must be pipes"),
        (("stdout",), "socket", "stdout and stderr of a direct job must be pipes"),
    ],
)
def test_wshd_takes_nothing_but_pipes_for_a_job(
    box: Box, tmp_path: Path, names: tuple[str, ...], kind: str, said: str
) -> None:
    """Whoever asks: a file or a terminal of the host is refused, and nothing is kept of it."""
    ours, theirs = socket.socketpair()
    master, slave = pty.openpty()
    memfd, sealed = os.memfd_create("m"), os.memfd_create("s", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    record = os.memfd_create("record")
    given = {"file": file, "memfd": memfd, "tty": slave, "sealed": sealed, "socket": theirs.fileno()}[kind]
    with box.client() as client:
        assert client.ask("ping").ok
        before = box.descriptors_of_pid_1()
        words = ("spawn", "job", "io", "direct", "arg", "/bin/true")
        reply = client.ask(
            *words, *(part for name in (*names, "record") for part in ("fd", name)), fds=[given, record]
        )
        assert reply.words[:2] == ["error", "EINVAL"]
        assert reply.words[2].startswith(said)
        assert client.ask("list").words == ["ok"]
        assert box.descriptors_of_pid_1() == before
    for fd in (master, slave, memfd, sealed, file, record):
        os.close(fd)
    ours.close()
    theirs.close()


def test_a_pid_1_that_does_not_answer_is_not_waited_for(box: Box) -> None:
    """Stopped before the greeting, and between that and the job: an error that says so, and no hanging terminal."""
    os.kill(box.pid, signal.SIGSTOP)
    try:
        done = subprocess.run(wsh(box, "true"), capture_output=True, timeout=60, check=False)
    finally:
        os.kill(box.pid, signal.SIGCONT)
    assert done.returncode == 125  # as when the socket is not there (PROTOCOL.md, "4. wsh")
    assert b"pid 1 of the container has not answered for 10 s" in done.stderr
    again = subprocess.run(wsh(box, "echo", "on"), capture_output=True, timeout=60, check=False)
    assert (again.returncode, again.stdout) == (0, b"on\n")
