"""A client that breaks the protocol harms only itself; a process inside cannot be a client."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, ID_BASE, Box, Client, running, words

pytestmark = pytest.mark.kernel
SO_SNDBUFFORCE = 32


@pytest.fixture(params=BUILDS)
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    yield from running(tmp_path, request.param)


def refused(client: Client, packet: bytes) -> bool:
    """True when the connection is closed for it, False when it is answered with an error."""
    client.socket.send(packet)
    try:
        reply = client.receive().words
    except ConnectionResetError:
        return True
    assert reply[0] == "error"
    return False


@pytest.mark.parametrize("packet", [b"ping", b"x" * 100, b"\xff\xfe", b"spawn\0job"])
def test_what_is_not_words_costs_the_connection(box: Box, packet: bytes) -> None:
    """A packet that does not end with NUL is no request."""
    with box.client() as client:
        assert refused(client, packet)


def test_what_is_oversized_costs_the_connection(box: Box) -> None:
    """More than a mebibyte, or more than eight descriptors, is not looked at; a long request below it is."""
    with box.client() as client:
        client.socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)
        assert refused(client, b"x" * ((1 << 20) + 1) + b"\0")
    with box.client() as client:
        socket.send_fds(client.socket, [words("ping")], [1] * 9)
        with pytest.raises(ConnectionResetError):
            client.receive()
    with box.client() as client, box.spool("long").opened() as fds:
        client.socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)
        big = "x" * 100_000
        command = (
            "arg",
            "/bin/sh",
            "arg",
            "-c",
            "arg",
            "echo ${#A} ${#B}",
            "env",
            f"A={big}",
            "env",
            f"B={big}",
        )
        assert client.ask(
            "spawn", "long", *command, "fd", "stdout", "fd", "stderr", "fd", "record", fds=fds
        ).ok
    assert box.wait("long") == ["ok", "exit", "0"]
    assert box.spool("long").out.read_text() == "100000 100000\n"


@pytest.mark.parametrize(
    "request_words",
    [
        ("bogus",),
        ("",),
        ("spawn",),
        ("spawn", ""),
        ("spawn", "j" * 1000, "arg", "true"),
        ("spawn", "job", "arg"),
        ("wait",),
        ("wait", "nobody"),
        ("wait", "a", "b"),
        ("signal", "nobody", "9"),
        ("trim", "nobody", "stdout", "0"),
        ("stop", "-1"),
        ("stop", "99999999999999999999"),
        ("attach", "/mnt"),
        ("list", "a", "b"),
    ],
)
def test_a_wrong_request_is_answered_and_the_connection_lives(
    box: Box, request_words: tuple[str, ...]
) -> None:
    """An error names itself, and the next request on the same connection is served."""
    with box.client() as client:
        assert not refused(client, words(*request_words))
        assert client.ask("ping").words == ["ok"]


def test_three_thousand_connections_of_garbage(box: Box) -> None:
    """Short, random, vanished and half-asked connections leave pid 1 alive and serving."""
    dice = random.Random(7)
    verbs = ["ping", "spawn", "wait", "list", "signal", "winsize", "trim", "forget", "stop", "attach"]
    keys = [
        "arg",
        "env",
        "uid",
        "io",
        "fd",
        "limit",
        "over",
        "rlimit",
        "group",
        "umask",
        "rows",
        "record",
        "direct",
    ]
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3000):
        client = box.client()
        kind = number % 5
        with contextlib.suppress(OSError):
            if kind == 0:
                client.socket.send(dice.randbytes(dice.randrange(1, 300)))
            elif kind == 1:
                client.socket.send(dice.randbytes(dice.randrange(1, 300)) + b"\0")
            elif kind == 2:
                parts = [dice.choice(keys + verbs) for _ in range(dice.randrange(12))]
                packet = words(dice.choice(verbs), "-", *parts)
                socket.send_fds(client.socket, [packet], [null] * dice.randrange(4))
            elif kind == 3:
                client.send("wait", "nobody")
                client.send("list")
        client.socket.close()
    os.close(null)
    assert box.shell("after", "echo alive") == "alive\n"


def test_full_of_connections_it_serves_again_when_one_leaves(box: Box) -> None:
    """Idle connections fill the table; the next one waits, pid 1 does not spin, and its turn comes."""
    hoard = []
    extra = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        while True:
            waiting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            waiting.settimeout(0.5)
            waiting.connect(str(box.socket))
            try:
                waiting.recv(100)
            except TimeoutError:
                extra = waiting
                break
            hoard.append(waiting)
        assert len(hoard) >= 100
        before = cpu_ticks(box.pid)
        assert hoard[0].send(words("ping"))
        assert hoard[0].recv(100) == b"ok\0"
        hoard.pop().close()
        extra.settimeout(30)
        assert extra.recv(100) == words("wshd", 1, "box")
        assert cpu_ticks(box.pid) - before < 50
    finally:
        for one in (*hoard, extra):
            one.close()


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_out_of_descriptors_it_answers_and_recovers(tmp_path: Path) -> None:
    """With pid 1's table full a spawn fails or waits; it works again when there is room."""
    box = Box.prepare(tmp_path, "static")
    box.under = ("prlimit", "--nofile=48:48")
    try:
        box.launch()
        waiting = []
        with box.client() as stopper:
            for number in range(40):
                client = box.connect()
                client.socket.settimeout(0.5)
                try:
                    client.receive()
                except TimeoutError:
                    waiting.append(client)
                    break
                with client, box.spool(f"job{number}").opened() as fds:
                    command = (
                        "arg",
                        "/bin/sleep",
                        "arg",
                        "60",
                        "fd",
                        "stdout",
                        "fd",
                        "stderr",
                        "fd",
                        "record",
                    )
                    try:
                        reply = client.ask("spawn", f"job{number}", *command, fds=fds)
                    except ConnectionResetError:
                        break  # not even the request's descriptors had room
                    if not reply.ok:
                        assert reply.words[1] == "EMFILE"
                        break
            else:
                raise AssertionError("48 descriptors were never used up")
            before = cpu_ticks(box.pid)
            assert stopper.ask("stop", 0).words == ["ok"]
            assert cpu_ticks(box.pid) - before < 50
        for client in waiting:
            client.socket.settimeout(30)
            assert client.receive().words[0] == "wshd"
            client.socket.close()
        names = [path.name.removesuffix(".out") for path in (box.folder / "spool").glob("*.out")]
        with box.client() as client:
            for name in names:
                client.ask("forget", name)
        assert box.shell("after", "echo on") == "on\n"
    finally:
        box.kill()


def test_a_record_that_is_no_file_is_refused(box: Box) -> None:
    """A full pipe as record would hold up pid 1, and everybody with it."""
    read_end, write_end = os.pipe()
    with box.client() as client:
        request = ("spawn", "job", "arg", "/bin/true", "io", "direct", "fd", "record")
        assert client.ask(*request, fds=[write_end]).words[:2] == ["error", "EINVAL"]
    os.close(read_end)
    os.close(write_end)


def test_nobody_but_the_hosts_root_is_served(box: Box) -> None:
    """The socket's mode keeps other users out; a process in the container's pid namespace is not greeted."""
    assert box.socket.stat().st_mode & 0o777 == 0o600
    for folder in [box.folder, *box.folder.parents][:4]:
        folder.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresuid(ID_BASE, ID_BASE, ID_BASE)
        try:
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(str(box.socket))
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    # Even root inside with the host's file system in sight, which it never has, would be closed out.
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            fd = os.pidfd_open(box.pid)
            setns(fd, 0x20000000)  # CLONE_NEWPID: of children
            child = os.fork()
            if child == 0:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                sock.settimeout(20)
                sock.connect(str(box.socket))
                try:
                    heard = sock.recv(100)
                except ConnectionResetError:
                    heard = b""
                os._exit(0 if heard == b"" else 1)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def setns(fd: int, kind: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, kind):
        raise OSError(ctypes.get_errno(), "setns")


def test_nothing_else_is_made_in_the_depot(box: Box) -> None:
    """The container's directory holds the socket and what the manager made."""
    assert {path.name for path in box.folder.iterdir()} == {"stack", "disk", "spool", "wshd.sock"}
