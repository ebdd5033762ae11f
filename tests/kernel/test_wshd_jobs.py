"""Jobs: how they start, end, are signalled, stopped, listed and limited."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, Box, Client, read_until, running, until_end, until_record

pytestmark = pytest.mark.kernel


@pytest.fixture(params=BUILDS)
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    yield from running(tmp_path, request.param)


@pytest.mark.parametrize(
    ("script", "ended"),
    [("exit 0", ["exit", "0"]), ("exit 255", ["exit", "255"]), ("kill -9 $$", ["signal", "9"])],
)
def test_codes_and_signals_are_told_apart(box: Box, script: str, ended: list[str]) -> None:
    """An exit code and a signal are different words, in the wait as in the record."""
    words, _, _ = box.run("job", "/bin/sh", "-c", script)
    assert words == ["ok", *ended]
    assert until_record(box.spool("job"), "end") == [" ".join(ended), "end"]


@pytest.mark.parametrize(
    ("argv", "keys", "error"),
    [
        (("/no/such",), (), "ENOENT"),
        (("no-such-name",), (), "ENOENT"),
        (("/etc/passwd",), (), "EACCES"),
        (("/bin/true",), ("cwd", "/nowhere"), "ENOENT"),
        (("/bin/true",), ("uid", 65535), "EINVAL"),
        (("/bin/true",), ("rlimit", "nofile:1"), "EINVAL"),
        (("/bin/true",), ("colour", "red"), "EINVAL"),
        (("/bin/true",), ("io", "pigeon"), "EINVAL"),
    ],
)
def test_a_spawn_that_fails_keeps_nothing(
    box: Box, argv: tuple[str, ...], keys: tuple[str | int, ...], error: str
) -> None:
    """The error has a name, the record stays empty, and the name of the job is free again."""
    reply = box.spawn("job", *argv, keys=keys)
    assert reply.words[:2] == ["error", error], reply.words
    assert box.spool("job").lines() == []
    assert box.wait("job")[:2] == ["error", "ENOENT"]
    assert box.run("job", "/bin/true")[0] == ["ok", "exit", "0"]


def test_spawn_again_is_the_same_job(box: Box) -> None:
    """A client that lost the answer repeats the request and gets the pid of the first."""
    first = box.spawn("job", "/bin/sleep", "60")
    again = box.spawn("job", "/bin/sleep", "60")
    assert first.words[:2] == ["ok", "started"]
    assert again.words == ["ok", "again", first.words[2]]
    assert box.shell("count", "ps | grep -c '[s]leep 60'").strip() == "1"


def test_user_groups_directory_umask_and_environment(box: Box) -> None:
    """The job is who, where and with what the request says, and nothing else."""
    keys = ("uid", 2000, "gid", 2000, "group", 7, "cwd", "/home/vcap", "umask", "077", "env", "A=b c")
    ended, out, err = box.run("job", "/bin/sh", "-c", "id -u; id -G; pwd; umask", keys=keys)
    assert ended == ["ok", "exit", "0"], err
    assert out.splitlines() == ["2000", "2000 7", "/home/vcap", "0077"]
    assert box.run("bare", "/bin/env", keys=keys)[1] == "A=b c\n"


def test_a_job_holds_no_descriptor_but_its_own(box: Box) -> None:
    """No descriptor of pid 1 or of the launcher's parent reaches a job."""
    assert box.shell("job", "ls /proc/self/fd").split() == ["0", "1", "2", "3"]  # 3 is that of ls itself


def test_a_group_gets_its_signal(box: Box) -> None:
    """A signal reaches the children of the job's first process too, and a dead job has none to send to."""
    box.spawn("job", "/bin/sh", "-c", "sleep 60 & sleep 60; :")
    with box.client() as client:
        assert client.ask("signal", "job", 15).words == ["ok"]
    assert box.wait("job") == ["ok", "signal", "15"]
    until_record(box.spool("job"), "end")
    with box.client() as client:
        assert client.ask("signal", "job", 15).words[:2] == ["error", "ESRCH"]
        assert client.ask("signal", "job", 65).words[:2] == ["error", "EINVAL"]


def spawn_deaf(box: Box) -> None:
    """A job that ignores TERM, from when this returns on."""
    box.spawn("deaf", "/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.01; done")
    with box.client() as client:
        while not box.spool("deaf").out.stat().st_size:
            assert client.ask("ping").ok


def test_stop_ends_what_ignores_term(box: Box) -> None:
    """A job that ignores TERM, daemons that left its session, and a fork bomb are gone when stop answers."""
    spawn_deaf(box)
    box.spawn("polite", "/bin/sleep", "60")
    assert box.run("daemon", "/bin/sh", "-c", "setsid sleep 61 >/dev/null 2>&1 &")[0] == ["ok", "exit", "0"]
    bomb = "trap '' TERM; b() { [ $1 = 0 ] || { b $(($1-1)) & b $(($1-1)) & }; sleep 60; }; b 6"
    box.spawn("bomb", "/bin/sh", "-c", bomb)
    with box.client() as client:
        assert client.ask("stop", 100).words == ["ok"]
    assert box.wait("deaf") == ["ok", "signal", "9"]
    assert box.wait("polite") == ["ok", "signal", "15"]
    assert len(box.shell("after", "ls -d /proc/[0-9]* | wc -l").strip()) == 1


def test_stop_of_an_empty_container_answers_at_once(box: Box) -> None:
    """Nobody to stop is no reason to wait, whatever the grace."""
    with box.client() as client:
        client.socket.settimeout(5)
        assert client.ask("stop", 60_000).words == ["ok"]


def test_a_second_stop_can_only_make_it_sooner(box: Box) -> None:
    """A stop without grace ends one that still has an hour."""
    spawn_deaf(box)
    with box.client() as patient, box.client() as hasty:
        patient.send("stop", 3_600_000)
        late = 0
        while box.spawn(f"late{late}", "/bin/true").words[:2] != ["error", "EBUSY"]:
            late += 1  # the stop has been sent on another connection, so it may come later than this
        assert hasty.ask("stop", 0).words == ["ok"]
        assert patient.receive().words == ["ok"]


def test_orphans_are_reaped(box: Box) -> None:
    """A process whose parent went away leaves no zombie."""
    box.shell("job", "for i in 1 2 3 4 5; do (sleep 0.01 &) ; done")
    until_record(box.spool("job"), "end")
    box.shell("look", "while ps -o stat | grep -q '^Z'; do :; done")


def test_list_is_paged(box: Box) -> None:
    """Pages together name every job once, in order, though the last of one is forgotten meanwhile."""
    names = [f"job-{'x' * 50}-{number:04}" for number in range(900)]
    with box.client() as client:
        for name in names:
            with box.spool("shared").opened() as fds:
                command = ("arg", "/bin/true", "fd", "stdout", "fd", "stderr", "fd", "record")
                assert client.ask("spawn", name, *command, fds=fds).ok
            assert client.ask("wait", name).ok
        seen: list[str] = []
        after: list[str] = []
        pages = 0
        while True:
            reply = client.ask("list", *after).words[1:]
            pages += 1
            seen += [reply[at + 1] for at in range(0, len(reply) - 3, 4) if reply[at] == "job"]
            if len(reply) < 2 or reply[-2] != "more":
                break
            after = [reply[-1]]
            assert client.ask("forget", reply[-1]).words == ["ok"]
    assert pages > 1
    assert seen == names


def test_list_tells_the_states(box: Box) -> None:
    """Running, ended, and ended with open pipes are told apart; a running job cannot be forgotten."""
    box.spawn("a-runs", "/bin/sleep", "60")
    box.run("b-open", "/bin/sh", "-c", "sleep 60 & exit 3")
    box.run("c-done", "/bin/sh", "-c", "kill -9 $$")
    until_record(box.spool("c-done"), "end")
    with box.client() as client:
        reply = client.ask("list").words
        states = {reply[at + 1]: reply[at + 2] for at in range(1, len(reply), 4)}
        assert states == {"a-runs": "running", "b-open": "exit:3+open", "c-done": "signal:9"}
        assert client.ask("forget", "a-runs").words[:2] == ["error", "EBUSY"]
        assert client.ask("forget", "c-done").words == ["ok"]
        assert client.ask("wait", "c-done").words[:2] == ["error", "ENOENT"]


def test_a_limit_that_cannot_be_raised_is_clamped_and_told(tmp_path: Path) -> None:
    """Without CAP_SYS_RESOURCE a limit above the launcher's is clamped, and the reply says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    box = Box.prepare(tmp_path, "static")
    try:
        box.launch()
        keys = ("rlimit", f"nofile:{hard + 5}:{hard + 5}", "rlimit", "core:0:0")
        reply = box.spawn("job", "/bin/sh", "-c", "ulimit -Hn; ulimit -n; ulimit -c", keys=keys)
        assert reply.words[0:2] + reply.words[3:] == ["ok", "started", "clamped", "nofile", str(hard)]
        assert box.wait("job") == ["ok", "exit", "0"]
        assert box.spool("job").out.read_text().split() == [str(hard), str(hard), "0"]
        # And one that asks for none has the launcher's, not pid 1's.
        assert box.shell("plain", "ulimit -n").strip() == str(soft)
    finally:
        box.kill()


def test_direct_job_has_the_callers_descriptors(box: Box) -> None:
    """Bytes go through the caller's own pipe, and the status comes in the record that came along."""
    record = os.memfd_create("record")
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    with box.client() as client:
        request = (
            "spawn",
            "tar",
            "io",
            "direct",
            "arg",
            "cat",
            "fd",
            "stdin",
            "fd",
            "stdout",
            "fd",
            "record",
        )
        assert client.ask(*request, fds=[in_read, out_write, record]).words[:2] == ["ok", "started"]
        os.close(in_read)
        os.close(out_write)
        client.send("wait", "tar")
        with os.fdopen(in_write, "wb") as stdin, os.fdopen(out_read, "rb") as stdout:

            def feed() -> None:
                with stdin:
                    stdin.write(b"x" * 300_000)

            feeder = threading.Thread(target=feed)
            feeder.start()
            assert len(stdout.read()) == 300_000
            feeder.join()
        assert client.receive().words == ["ok", "exit", "0"]
        assert client.ask("list").words == ["ok"]
    assert until_end(record) == b"exit 0\nend\n"
    os.close(record)


def test_terminal_job(box: Box) -> None:
    """The master comes with the answer, with the size asked for; a change of it is a signal inside."""
    record = os.memfd_create("record")
    script = "trap 'stty size; exit 4' WINCH; tty; stty size; while :; do sleep 0.01; done"
    keys = ("io", "terminal", "rows", 30, "cols", 100, "uid", 2000, "gid", 2000, "fd", "record")
    with box.client() as client:
        reply = client.ask("spawn", "pty", "arg", "/bin/sh", "arg", "-c", "arg", script, *keys, fds=[record])
        assert reply.words[:2] == ["ok", "started"]
        (master,) = reply.fds
        text = read_until(master, b"30 100\r\n")
        assert text.startswith(b"/dev/pts/")
        client.send("wait", "pty")
        with box.client() as side:
            assert side.ask("winsize", "pty", 40, 120).words == ["ok"]
            assert b"40 120" in read_until(master, b"40 120\r\n")
            assert client.receive().words == ["ok", "exit", "4"]
            assert side.ask("winsize", "pty", 1, 1).words[:2] == ["error", "ENOENT"]
        os.close(master)
    os.close(record)


def test_closing_the_master_hangs_up(box: Box) -> None:
    """A client that vanishes takes its terminal's job along."""
    record = os.memfd_create("record")
    with box.client() as client:
        reply = client.ask(
            "spawn", "pty", "arg", "sleep", "arg", "60", "io", "terminal", "fd", "record", fds=[record]
        )
        os.close(reply.fds[0])
        client.ask("wait", "pty")  # or it has ended and is forgotten: its record is ours
        assert until_end(record) == b"signal %d\nend\n" % signal.SIGHUP
    os.close(record)


def test_wait_is_answered_while_others_are_served(box: Box) -> None:
    """A pending wait holds up nobody else, and its client may go away."""
    box.spawn("job", "/bin/sleep", "60")
    with box.client() as waiter:
        waiter.send("wait", "job")
        with box.client() as other:
            assert other.ask("ping").words == ["ok"]
            waiter.socket.close()
            assert other.ask("signal", "job", 9).words == ["ok"]
    assert box.wait("job") == ["ok", "signal", "9"]
    assert isinstance(box.client(), Client)
