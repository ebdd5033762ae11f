"""The manager's end of wshd's socket, against a server that says what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from container.wshd import Listed, Started, Wshd, WshdError, WshdGone, WshdSilent

pytestmark = pytest.mark.unit

GREETING = b"wshd\x001\0box\0"


class Server:
    """Greets and answers each connection in turn; keeps what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.answers: list[tuple[bytes, bytes, list[int]]] = []
        self.asked: list[list[str]] = []
        self.given: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(str(directory / "wshd.sock"))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def will(self, answer: bytes, *, greeting: bytes = GREETING, fds: list[int] | None = None) -> None:
        self.answers.append((greeting, answer, fds or []))

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer, contextlib.suppress(ConnectionError):  # a client may have heard enough
                greeting, answer, fds = self.answers.pop(0)
                if not greeting:
                    continue
                peer.send(greeting)
                data, received, _, _ = socket.recv_fds(peer, 1 << 21, 8)
                self.given.append(len(received))
                for fd in received:
                    os.close(fd)
                self.asked.append([word.decode() for word in data.split(b"\0")[:-1]])
                if answer:
                    socket.send_fds(peer, [answer], fds)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    opened = Server(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def wshd(tmp_path: Path) -> Iterator[Wshd]:
    directory = os.open(tmp_path, os.O_PATH)
    yield Wshd(directory, "box")
    os.close(directory)


Request = Callable[[Wshd], Awaitable[Any]]
REQUESTS: list[tuple[Request, list[str]]] = [
    (lambda w: w.ping(), ["ping"]),
    (lambda w: w.signal("j", 15), ["signal", "j", "15"]),
    (lambda w: w.winsize("j", 3, 4), ["winsize", "j", "3", "4"]),
    (lambda w: w.trim("j", "stdout", 9), ["trim", "j", "stdout", "9"]),
    (lambda w: w.forget("j"), ["forget", "j"]),
    (lambda w: w.stop(1.5), ["stop", "1500"]),
    (lambda w: w.attach("/mnt", 0), ["attach", "/mnt"]),
]


@pytest.mark.parametrize(("request_", "words"), REQUESTS, ids=[words[0] for _, words in REQUESTS])
async def test_requests_are_the_protocols_words(
    server: Server, wshd: Wshd, request_: Request, words: list[str]
) -> None:
    """One packet, words each ended by NUL; attach brings its descriptor."""
    server.will(b"ok\0")
    await request_(wshd)
    assert server.asked == [words]
    assert server.given == [1 if words[0] == "attach" else 0]


async def test_spawn_sends_its_keys_and_reads_its_answer(server: Server, wshd: Wshd) -> None:
    """Limits that were clamped are told; words that a newer wshd adds are passed over."""
    server.will(b"ok\0started\x0042\0clamped\0nofile\x00100\0novel\0")
    started = await wshd.spawn("j", [("arg", "true"), ("fd", "record")], [0])
    assert server.asked == [["spawn", "j", "arg", "true", "fd", "record"]]
    assert started == Started(42, clamped=(("nofile", "100"),))

    server.will(b"ok\0again\x0042\0")
    assert await wshd.spawn("j", [], []) == Started(42, again=True)


async def test_a_terminal_comes_along(server: Server, wshd: Wshd) -> None:
    """The first descriptor is the master; a second one, which nobody asked for, is closed."""
    null = os.open("/dev/null", os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    server.will(b"ok\0started\x007\0", fds=[null, null])
    started = await wshd.spawn("j", [("io", "terminal")], [])
    assert started.master is not None
    os.close(started.master)
    os.close(null)
    assert len(os.listdir("/proc/self/fd")) <= before - 1


async def test_a_list_is_read_page_by_page(server: Server, wshd: Wshd) -> None:
    """Until a page says no more; the next one is asked for by the last name."""
    server.will(b"ok\0job\0a\0exit:3+open\x005\0more\0a\0")
    server.will(b"ok\0job\0b\0running\x006\0")
    assert await wshd.jobs() == [Listed("a", "exit:3+open", 5), Listed("b", "running", 6)]
    assert server.asked == [["list"], ["list", "a"]]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"ok\0exit\x007\0", ("exit", 7)),
        (b"ok\0signal\x009\0", ("signal", 9)),
        (b"ok\0overran\0", ("overran", 0)),
    ],
)
async def test_a_wait_tells_how_it_ended(
    server: Server, wshd: Wshd, answer: bytes, expected: tuple[str, int]
) -> None:
    """Code and signal apart, and the limit of output."""
    server.will(answer)
    assert await wshd.wait("j") == expected


@pytest.mark.parametrize(
    ("answer", "name", "text"),
    [
        (b"error\0EBUSY\0j: Device or resource busy\0", "EBUSY", "EBUSY: j: Device or resource busy"),
        (b"error\0EINVAL\0", "EINVAL", "EINVAL"),
        (b"error\0", "", ""),
    ],
)
async def test_a_refusal_has_its_name(
    server: Server, wshd: Wshd, answer: bytes, name: str, text: str
) -> None:
    """Also one that is cut short."""
    server.will(answer)
    with pytest.raises(WshdError) as refused:
        await wshd.ping()
    assert (refused.value.name, str(refused.value)) == (name, text)


@pytest.mark.parametrize(
    ("greeting", "answer"),
    [
        (b"wshd\x002\0box\0", b"ok\0"),  # another version
        (b"wshd\x001\0other\0", b"ok\0"),  # another container
        (b"sshd\0", b"ok\0"),
        (b"wshd", b"ok\0"),
        (GREETING, b"what\0"),
        (GREETING, b"ok"),
        (GREETING, b"ok\0" + b"x" * 70_000 + b"\0"),  # more than a reply may have
        (GREETING, b""),  # hung up
        (b"", b""),  # without a word
    ],
)
async def test_who_does_not_speak_as_wshd_is_gone(
    server: Server, wshd: Wshd, greeting: bytes, answer: bytes
) -> None:
    """Nothing of such an answer is believed."""
    server.will(answer, greeting=greeting)
    with pytest.raises(WshdGone):
        await wshd.ping()


async def test_nobody_there_is_gone(tmp_path: Path) -> None:
    """No socket, and one that nobody listens on any more."""
    directory = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(WshdGone):
            await Wshd(directory, "box").ping()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(str(tmp_path / "wshd.sock"))
        with pytest.raises(WshdGone):
            await Wshd(directory, "box").ping()
    finally:
        os.close(directory)


async def test_a_request_that_is_too_large_is_refused_here(wshd: Wshd) -> None:
    """wshd would hang up without a word, as if it were gone; nobody is asked."""
    with pytest.raises(WshdError, match="E2BIG: spawn: expected at most 1048576 bytes"):
        await wshd.spawn("j", [("env", "A=" + "x" * (1 << 20))], [])


async def test_a_large_request_arrives_whole(server: Server, wshd: Wshd) -> None:
    """Beyond what a socket's buffer takes by itself."""
    server.will(b"ok\0started\x001\0")
    big = "x" * 900_000
    await wshd.spawn("j", [("env", big)], [])
    assert server.asked == [["spawn", "j", "env", big]]


async def test_a_caller_that_goes_away_leaves_no_descriptor(server: Server, wshd: Wshd) -> None:
    """Each request has a connection of its own, which goes with it."""
    server.will(b"")
    before = len(os.listdir("/proc/self/fd"))
    task = asyncio.create_task(wshd.wait("j"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the server's end may still be open


@pytest.mark.parametrize(
    ("state", "ended"),
    [
        ("running", None),
        ("running+open", None),
        ("exit:7", ("exit", 7)),
        ("exit:0+open", ("exit", 0)),
        ("signal:15", ("signal", 15)),
        ("overran", ("overran", 0)),
        ("novel:1", None),
    ],
)
def test_a_listed_job_tells_how_it_ended(state: str, ended: tuple[str, int] | None) -> None:
    """In the words of `wait`; a state that a newer wshd has is no end."""
    assert Listed("j", state, 1).ended == ended


async def test_who_does_not_answer_is_silent_which_is_not_gone(tmp_path: Path) -> None:
    """It listens and takes no connection, as a pid 1 that is stopped."""
    directory = os.open(tmp_path, os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stopped:
        stopped.bind(str(tmp_path / "wshd.sock"))
        stopped.listen(1)
        try:
            for _ in range(4):  # past its backlog too
                with pytest.raises(WshdSilent, match=r"box: list: no answer in 0\.05 s"):
                    await Wshd(directory, "box").jobs(0.05)
        finally:
            os.close(directory)
