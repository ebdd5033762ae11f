"""Nearly valid packets: valid requests, changed at random, with the right or the wrong descriptors."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, Box, running, words

pytestmark = pytest.mark.kernel

PACKETS = 24_000
A_CONNECTION = 6  # packets
SPOOL = ("fd", "stdout", "fd", "stderr", "fd", "record")
REQUESTS: tuple[tuple[str, ...], ...] = (
    ("ping",),
    ("list",),
    ("list", "b"),
    ("wait", "a"),
    ("signal", "a", "9"),
    ("winsize", "t", "10", "20"),
    ("trim", "a", "stdout", "4096"),
    ("forget", "a"),
    ("stop", "0"),
    ("stop", "10"),
    ("attach", "/mnt"),
    ("spawn", "a", "arg", "/bin/true", *SPOOL),
    ("spawn", "b", "arg", "echo", "arg", "text", "env", "PATH=:/bin::", "limit", "1", "over", "kill", *SPOOL),
    ("spawn", "c", "arg", "yes", "limit", "4096", "over", "drop-oldest", *SPOOL),
    ("spawn", "d", "arg", "yes", "limit", "4096", "over", "block", *SPOOL),
    (
        "spawn",
        "e",
        "arg",
        "sleep",
        "arg",
        "9",
        "uid",
        "2000",
        "gid",
        "2000",
        "group",
        "7",
        "umask",
        "077",
        *SPOOL,
    ),
    (
        "spawn",
        "f",
        "arg",
        "/bin/true",
        "rlimit",
        "nofile:5:infinity",
        "rlimit",
        "core:0:0",
        "cwd",
        "/etc",
        *SPOOL,
    ),
    ("spawn", "t", "io", "terminal", "rows", "3", "cols", "4", "fd", "record"),
    ("spawn", "g", "io", "direct", "arg", "cat", "fd", "stdin", "fd", "stdout", "fd", "record"),
)
STRANGE = (
    b"",
    b"-1",
    b"0",
    b"18446744073709551616",
    b"4294967295",
    b"a" * 63,
    b"a" * 64,
    b"\xff\xfe",
    b"/" * 5000,
    b":",
)


@pytest.fixture(params=BUILDS)
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    yield from running(tmp_path, request.param)


def bend(dice: random.Random, request: tuple[str, ...]) -> bytes:
    """The request as it is, or with a word changed, added, doubled, taken away, or with bytes of the packet bent."""
    parts = [word.encode() for word in request]
    at = dice.randrange(len(parts))
    kind = dice.randrange(8)
    if kind == 0:
        parts[at] = dice.choice(STRANGE)
    elif kind == 1:
        parts.insert(at, dice.choice(STRANGE))
    elif kind == 2:
        parts += parts[at:]
    elif kind == 3:
        del parts[at]
    packet = bytearray(words(*parts))
    if kind == 4 and packet:
        packet[dice.randrange(len(packet))] = dice.randrange(256)
    elif kind == 5:
        packet = packet[: dice.randrange(len(packet) + 1)]
    return bytes(packet)


def test_bent_requests_cost_nobody_else_anything(box: Box) -> None:
    """Another client is served throughout, and in the end pid 1 holds no descriptor more than in the beginning."""
    dice = random.Random(20261125)
    pipe = os.pipe()
    with box.client() as bystander:
        before = box.descriptors_of_pid_1()
        for number in range(PACKETS // A_CONNECTION):
            memory = [os.memfd_create("spool") for _ in range(3)]
            with contextlib.closing(box.connect().socket) as sock, contextlib.suppress(OSError):
                sock.setblocking(False)
                for _ in range(A_CONNECTION):
                    packet = bend(dice, dice.choice(REQUESTS))
                    given = dice.choice((memory, memory, [*pipe, *memory], memory[:1], [], memory * 3))
                    socket.send_fds(sock, [packet], given)
            for fd in memory:
                os.close(fd)
            if number % 10 == 0:
                assert bystander.ask("ping").words == ["ok"]
        for fd in pipe:
            os.close(fd)
        empty(box)
        deadline = time.monotonic() + 30
        while (after := box.descriptors_of_pid_1()) != before:
            assert time.monotonic() < deadline, f"{after - before} descriptors more"
            assert bystander.ask("ping").words == ["ok"]
    assert box.shell("after", "echo alive") == "alive\n"


def empty(box: Box) -> None:
    """Stops and forgets every job, those that a packet still under way starts meanwhile too."""
    deadline = time.monotonic() + 30
    while True:
        with box.client() as client:
            assert client.ask("stop", 0).words == ["ok"]
            reply = client.ask("list").words
            jobs = [(reply[at + 1], reply[at + 2]) for at in range(1, len(reply), 4)]
            if not jobs:
                return
            for job, _ in jobs:
                for stream in ("stdout", "stderr"):  # one that blocks has no record before it was read
                    client.ask("trim", job, stream, (1 << 63) - 1)
                client.ask("forget", job)
        assert time.monotonic() < deadline, jobs
