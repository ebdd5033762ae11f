"""wshd from the manager's side: the launch conversation and the socket's requests (PROTOCOL.md).

`Launcher` opens the binary once and runs it by descriptor, so that an upgrade on disk cannot pair this
manager's plans with another wshd. `Wshd` is a typed client; each request has a connection of its own, so
that a cancelled caller leaves no answer behind for the next one.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from container.aio import readable, writable
from container.errors import ContainerError
from container.plan import Plan
from wsh.units import MIB

#: Of any request but `wait`, which lasts as long as its job; `guard.py` watches over that one.
REQUEST_TIMEOUT_S: Final = 10.0
#: While a manager begins: the others wait behind one that does not answer.
RECOVERY_TIMEOUT_S: Final = 2.0
#: What a `stop` may take beyond its grace: the kernel reaps, and wshd answers.
STOP_MARGIN_S: Final = 5.0
VERSION: Final = 1
"""Of the protocol (PROTOCOL.md)."""
_LAUNCH_TIMEOUT_S: Final = 20.0
_REPLY_BYTES: Final = 65536
_REQUEST_BYTES: Final = MIB
_BIG_REQUEST_BYTES: Final = 100_000
_SO_SNDBUFFORCE: Final = 32


class LaunchError(ContainerError, RuntimeError):
    """wshd gave up; the text is its own line, which names what, on what, and the error."""


class WshdGone(ContainerError, ConnectionError):
    """Nobody answers: pid 1 is dead."""


class LaterWshd(WshdGone):
    """Somebody answers, in a later version of the protocol: alive, and not ours to speak to."""


class WshdSilent(WshdGone):
    """pid 1 may be alive, and has not answered in time. What was asked may have been done, or may be done yet."""


class WshdError(ContainerError, RuntimeError):
    """The request was refused; ``name`` is EINVAL, ENOENT, EEXIST, EBUSY..."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}" if text else name)
        self.name = name


class Launch:
    """A wshd that is being started. `pid`, then `go` when it has a network, then `ready`; else `abort`."""

    def __init__(self, process: int, pidfd: int, stdin: int, stdout: int, stderr: int) -> None:
        self._process, self._pidfd = process, pidfd
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self._buffer = b""

    async def pid(self) -> int:
        """The host's pid of the container's pid 1: its namespaces are made, its ids mapped."""
        word, _, number = (await self._line()).partition(" ")
        if word != "pid" or not number.isdigit():
            raise LaunchError(f"wshd: expected 'pid N', got {word!r}")
        return int(number)

    def go(self) -> None:
        with suppress(BrokenPipeError):  # it has ended: `ready` reads why
            os.write(self._stdin, b"go\n")

    async def ready(self) -> None:
        line = await self._line()
        if line != "ready":
            raise LaunchError(f"wshd: expected 'ready', got {line!r}")
        async with asyncio.timeout(_LAUNCH_TIMEOUT_S):
            await self._reap()
        self._close()

    async def abort(self) -> None:
        """Idempotent: end the launcher, which takes the child with it as long as that is not ready."""
        if self._pidfd >= 0:
            os.close(self._stdin)
            self._stdin = -1
            os.kill(self._process, 9)
            await self._reap()
            self._close()

    async def _line(self) -> str:
        async with asyncio.timeout(_LAUNCH_TIMEOUT_S):
            while b"\n" not in self._buffer:
                await readable(self._stdout)
                data = os.read(self._stdout, 4096)
                if not data:
                    raise LaunchError(self._said() or "wshd: ended without a word")
                self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace")

    def _said(self) -> str:
        try:
            return os.read(self._stderr, 4096).decode(errors="replace").strip()
        except BlockingIOError:
            return ""

    async def _reap(self) -> None:
        await readable(self._pidfd)
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)  # noqa: ASYNC222  it has ended: no wait

    def _close(self) -> None:
        for fd in (self._pidfd, self._stdin, self._stdout, self._stderr):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._stdin = self._stdout = self._stderr = -1


class Launcher:
    def __init__(self, binary: Path) -> None:
        fd = os.open(binary, os.O_PATH | os.O_CLOEXEC)
        self._binary = _high(fd)
        os.close(fd)

    def start(self, plan: Plan) -> Launch:
        """posix_spawn: a vfork without a copy of this process. 0.6 ms, most of it the kernel's exec."""
        memory = os.memfd_create("plan", os.MFD_CLOEXEC)
        opened = [memory]
        try:
            _write_all(memory, plan.words())
            os.lseek(memory, 0, os.SEEK_SET)
            plan_fd = _high(memory)
            opened.append(plan_fd)
            pipes = []
            for _ in range(3):
                ends = os.pipe2(os.O_CLOEXEC)
                opened += ends
                pipes.append(ends)
            (in_read, in_write), (out_read, out_write), (err_read, err_write) = pipes
            child_ends = [_high(fd) for fd in (in_read, out_write, err_write)]
            opened += child_ends
            process = os.posix_spawn(
                f"/proc/self/fd/{self._binary}",
                ["wshd", "--plan", "3"],
                {},
                file_actions=[
                    *((os.POSIX_SPAWN_DUP2, fd, index) for index, fd in enumerate(child_ends)),
                    (os.POSIX_SPAWN_DUP2, plan_fd, 3),
                ],
                setsigmask=(),
            )
            pidfd = os.pidfd_open(process)
            for kept in (in_write, out_read, err_read):
                os.set_blocking(kept, False)
                opened.remove(kept)
            return Launch(process, pidfd, in_write, out_read, err_read)
        finally:
            for fd in opened:
                os.close(fd)

    def close(self) -> None:
        os.close(self._binary)


def _high(fd: int) -> int:
    """A duplicate above the numbers that the child's own descriptors get."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@dataclass(frozen=True, slots=True)
class Started:
    """``master``: the terminal's descriptor, owned by the receiver; ``clamped``: rlimits that were
    lowered.
    """

    pid: int
    again: bool = False
    clamped: tuple[tuple[str, str], ...] = ()
    master: int | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    job: str
    state: str
    pid: int

    @property
    def ended(self) -> tuple[str, int] | None:
        """As `Wshd.wait` answers; None: it runs."""
        kind, _, number = self.state.removesuffix("+open").partition(":")
        if kind not in ("exit", "signal", "overran"):
            return None
        return kind, int(number) if number.isdigit() else 0


class Wshd:
    """Requests to the wshd whose socket lies in the directory behind ``dir_fd`` (owned by the caller)."""

    def __init__(self, dir_fd: int, handle: str, name: str = "wshd.sock") -> None:
        # The path of a depot may be longer than the 107 bytes of a socket address.
        self._address = f"/proc/self/fd/{dir_fd}/{name}"
        self._handle = handle

    async def ping(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        await self._ask(["ping"], timeout_s=timeout_s)

    async def spawn(self, job: str, keys: Iterable[tuple[str, str]], fds: Sequence[int]) -> Started:
        words = ["spawn", job]
        for key, value in keys:
            words += (key, value)
        reply, received = await self._ask(words, fds)
        pid, again, clamped = 0, False, []
        at = 0
        while at < len(reply):
            match reply[at]:
                case "started" | "again" as word if at + 1 < len(reply):
                    pid, again = int(reply[at + 1]), word == "again"
                    at += 2
                case "clamped" if at + 2 < len(reply):
                    clamped.append((reply[at + 1], reply[at + 2]))
                    at += 3
                case _:
                    at += 1
        for extra in received[1:]:
            os.close(extra)
        return Started(pid, again, tuple(clamped), received[0] if received else None)

    async def wait(self, job: str) -> tuple[str, int]:
        """(``exit`` | ``signal`` | ``overran``, number). WshdError ENOENT: not known (any more)."""
        reply, _ = await self._ask(["wait", job], timeout_s=None)
        return reply[0], int(reply[1]) if len(reply) > 1 else 0

    async def jobs(self, timeout_s: float = REQUEST_TIMEOUT_S) -> list[Listed]:
        jobs: list[Listed] = []
        after: list[str] = []
        while True:
            reply, _ = await self._ask(["list", *after], timeout_s=timeout_s)
            after = []
            at = 0
            while at < len(reply):
                if reply[at] == "job" and at + 3 < len(reply):
                    jobs.append(Listed(reply[at + 1], reply[at + 2], int(reply[at + 3])))
                    at += 4
                elif reply[at] == "more" and at + 1 < len(reply):
                    after = [reply[at + 1]]
                    at += 2
                else:
                    at += 1
            if not after:
                return jobs

    async def signal(self, job: str, number: int) -> None:
        await self._ask(["signal", job, str(number)])

    async def winsize(self, job: str, rows: int, cols: int) -> None:
        await self._ask(["winsize", job, str(rows), str(cols)])

    async def trim(self, job: str, stream: str, offset: int) -> None:
        await self._ask(["trim", job, stream, str(offset)])

    async def forget(self, job: str) -> None:
        await self._ask(["forget", job])

    async def stop(self, grace_s: float) -> None:
        """TERM to all but pid 1, KILL after the grace; back when nothing but pid 1 is left."""
        await self._ask(["stop", str(int(grace_s * 1000))], timeout_s=grace_s + STOP_MARGIN_S)

    async def attach(self, path: str, mount_fd: int) -> None:
        await self._ask(["attach", path], [mount_fd])

    async def _ask(
        self,
        words: Sequence[str],
        fds: Sequence[int] = (),
        *,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
    ) -> tuple[list[str], list[int]]:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answer(words, fds)
        except TimeoutError:
            raise WshdSilent(f"{self._handle}: {words[0]}: no answer in {timeout_s:g} s") from None

    async def _answer(self, words: Sequence[str], fds: Sequence[int]) -> tuple[list[str], list[int]]:
        packet = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)
        if len(packet) > _REQUEST_BYTES:  # wshd would hang up without a word
            raise WshdError(
                "E2BIG", f"{words[0]}: expected at most {_REQUEST_BYTES} bytes, got {len(packet)}"
            )
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
                await _connect(sock, self._address)
                greeting, _ = await _receive(sock)
                if greeting[:1] == ["wshd"] and _is_later(greeting[1:2]):
                    raise LaterWshd(f"wshd speaks version {greeting[1]}, this manager up to {VERSION}")
                if greeting[:2] != ["wshd", str(VERSION)] or greeting[2:3] != [self._handle]:
                    raise WshdGone(f"expected the wshd of {self._handle}, was greeted by {greeting}")
                if len(packet) > _BIG_REQUEST_BYTES:
                    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(packet))
                await _send(sock, packet, fds)
                reply, received = await _receive(sock)
        except LaterWshd:
            raise
        except (ConnectionError, FileNotFoundError) as e:
            raise WshdGone(f"{self._handle}: {e}") from e
        if reply[0] == "error":
            raise WshdError(reply[1] if len(reply) > 1 else "", reply[2] if len(reply) > 2 else "")
        if reply[0] != "ok":
            raise WshdGone(f"{self._handle}: expected 'ok' or 'error', got {reply[0]!r}")
        return reply[1:], received


def _is_later(version: Sequence[str]) -> bool:
    return len(version) == 1 and version[0].isdigit() and int(version[0]) > VERSION


async def _connect(sock: socket.socket, address: str) -> None:
    while True:
        try:
            sock.connect(address)
        except BlockingIOError:
            # A full backlog: connect(2) on a Unix socket says EAGAIN and there is nothing to poll for.
            await asyncio.sleep(0.002)
        else:
            return


async def _send(sock: socket.socket, packet: bytes, fds: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    while True:
        try:
            sock.sendmsg([packet], ancillary)
        except BlockingIOError:
            await writable(sock.fileno())
        else:
            return


async def _receive(sock: socket.socket) -> tuple[list[str], list[int]]:
    await readable(sock.fileno())
    fds = array.array("i")
    data, ancillary, flags, _ = sock.recvmsg(_REPLY_BYTES, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        raise ConnectionResetError("connection closed")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not data.endswith(b"\0"):
        for fd in fds:
            os.close(fd)
        raise ConnectionResetError("truncated reply")
    return [word.decode("utf-8", "surrogateescape") for word in data[:-1].split(b"\0")], list(fds)
