"""A container launched by hand and a client of its socket, without anything of ``container/``.

``Box.launch`` lays out a busybox root in a folder, runs wshd with a plan, and ends with its ``ready`` line.
``Client`` is one connection: words and descriptors out, words and descriptors in.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import wsh

ID_BASE = 1_700_000_000
ID_COUNT = 65_536
REPLY_BYTES = 1 << 20
BUILDS = ("static", "asan")
_WORD = ("utf-8", "surrogateescape")
REPORT = "sanitizer-report"  # inside.c


def bounding_mask() -> int:
    """The bounding set that the manager gives: numbers of capabilities(7)."""
    chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap = 0, 1, 3, 4, 5, 6, 7, 8
    net_bind_service, sys_chroot, setfcap = 10, 18, 31
    numbers = (
        *(chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap),
        *(net_bind_service, sys_chroot, setfcap),
    )
    return sum(1 << number for number in numbers)


def program(build: str, name: str = "wshd") -> Path:
    """The program of a build; `asan` lies below the folder of the static one."""
    path = wsh.wshd_path() if name == "wshd" else wsh.wsh_path()
    return path.parent / "asan" / name if build == "asan" else path


def words(*parts: str | bytes | int | Path) -> bytes:
    """A word is bytes; one that is no UTF-8 (a job of that name) passes through a string unharmed."""
    return b"".join((part if isinstance(part, bytes) else str(part).encode(*_WORD)) + b"\0" for part in parts)


def make_stack(root: Path) -> Path:
    """A root file system of busybox, owned by root."""
    for name in ("bin", "etc", "home/vcap", "root", "var", "srv/deep"):
        (root / name).mkdir(parents=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in (
        "sh",
        "cat",
        "ls",
        "id",
        "sleep",
        "kill",
        "mv",
        "rm",
        "mkdir",
        "stat",
        "env",
        "dd",
        "yes",
        "head",
    ):
        (root / "bin" / name).symlink_to("busybox")
    for name in (
        "echo",
        "true",
        "false",
        "mount",
        "umount",
        "readlink",
        "grep",
        "wc",
        "tty",
        "stty",
        "ps",
        "ln",
        "setsid",
    ):
        (root / "bin" / name).symlink_to("busybox")
    for name in (
        "seq",
        "touch",
        "nc",
        "hostname",
        "chmod",
        "sync",
        "find",
        "chown",
        "nohup",
        "pwd",
        "tr",
        "ip",
        "sort",
        "tail",
    ):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nvcap:x:2000:2000::/home/vcap:/bin/sh\n")
    (root / "etc/lower").write_text("from the stack\n")
    (root / "srv/deep/file").write_text("deep\n")
    os.chown(root / "home/vcap", 2000, 2000)
    return root


def make_upper(path: Path, owner: int = 0) -> Path:
    """An overlay's upper and work; the root of the overlay is whose `upper` is."""
    for name in ("upper", "work"):
        (path / name).mkdir(parents=True)
        os.chown(path / name, ID_BASE + owner, ID_BASE + owner)
    return path


@dataclass
class Reply:
    words: list[str]
    fds: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.words[:1] == ["ok"]


class Client:
    """One connection; its greeting has been read."""

    def __init__(self, path: Path, greeted: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(30)
        folder = os.open(path.parent, os.O_PATH)
        try:
            self._connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        self.greeting = self.receive().words if greeted else []

    def _connect(self, address: str) -> None:
        """A full backlog is EAGAIN at once for a socket with a timeout, so try again (connect(2) on Unix sockets)."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.socket.connect(address)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: str | bytes | int, fds: Sequence[int] = ()) -> None:
        socket.send_fds(self.socket, [words(*parts)], list(fds))

    def receive(self) -> Reply:
        data, fds, _flags, _ = socket.recv_fds(self.socket, REPLY_BYTES, 8)
        if not data:
            raise ConnectionResetError("wshd closed the connection")
        return Reply([part.decode(*_WORD) for part in data.split(b"\0")[:-1]], list(fds))

    def ask(self, *parts: str | bytes | int, fds: Sequence[int] = ()) -> Reply:
        self.send(*parts, fds=fds)
        return self.receive()


@dataclass
class Spool:
    """A job's three files, as the manager makes them."""

    folder: Path
    job: str

    @property
    def out(self) -> Path:
        return self.folder / f"{self.job}.out"

    @property
    def err(self) -> Path:
        return self.folder / f"{self.job}.err"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.job}.record"

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[int]]:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fds = [os.open(path, flags, 0o600) for path in (self.out, self.err, self.record)]
        try:
            yield fds
        finally:
            for fd in fds:
                os.close(fd)

    def lines(self) -> list[str]:
        return self.record.read_text().splitlines()


class LaunchError(Exception):
    """wshd ended before `ready`; the text is what it said."""


@dataclass
class Box:
    folder: Path
    build: str
    stack: Path
    pid: int = 0
    under: tuple[str, ...] = ()  # what the launcher is started by: prlimit and the like

    @property
    def socket(self) -> Path:
        return self.folder / "wshd.sock"

    @classmethod
    def prepare(cls, folder: Path, build: str) -> Box:
        box = cls(folder, build, make_stack(folder / "stack"))
        make_upper(folder / "disk")
        (folder / "spool").mkdir()
        return box

    def plan(self, *extra: str | int, net: Sequence[str | int] = ("net", "none")) -> bytes:
        return words(
            *("version", 1, "handle", "box", "hostname", "boxhost", "ids", ID_BASE, ID_COUNT),
            *(
                "layer",
                self.stack,
                "upper",
                self.folder / "disk",
                "overlay",
                "volatile,redirect_dir=on,index=on",
            ),
            *("bounding", f"{bounding_mask():x}", "socket", self.socket),
            *net,
            *extra,
        )

    def start(self, plan: bytes, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        plan_fd = os.memfd_create("plan", 0)
        os.write(plan_fd, plan)
        os.lseek(plan_fd, 0, os.SEEK_SET)
        try:
            return subprocess.Popen(
                [*self.under, str(program(self.build)), "--plan", str(plan_fd)],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(plan_fd,),
                cwd=self.folder,
            )
        finally:
            os.close(plan_fd)

    def launch(self, *extra: str | int) -> Box:
        process = self.start(self.plan(*extra))
        out, err = process.communicate(timeout=60)
        for line in out.decode().splitlines():
            if line.startswith("pid "):
                self.pid = int(line.removeprefix("pid "))
        if process.returncode or not out.endswith(b"ready\n"):
            raise LaunchError(f"exit {process.returncode}: {err.decode()}")
        return self

    def reports(self) -> str:
        """What the sanitizers have found in pid 1 and its children; the launcher's go to its standard error."""
        path = self.folder / "disk/upper" / REPORT
        return path.read_text(errors="replace") if path.exists() else ""

    def descriptors_of_pid_1(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def alive(self) -> bool:
        with Client(self.socket) as client:
            return client.ask("ping").ok

    def kill(self) -> None:
        """Ends pid 1, and with it everything inside; waits for the kernel to have it done. A report fails the test."""
        self._end()
        assert not (found := self.reports()), found

    def _end(self) -> None:
        if not self.pid:
            return
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.pid)
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                wait_readable(pidfd)
            finally:
                os.close(pidfd)

    def client(self) -> Client:
        return Client(self.socket)

    def connect(self) -> Client:
        """A connection whose greeting has not been read."""
        return Client(self.socket, greeted=False)

    def spool(self, job: str) -> Spool:
        return Spool(self.folder / "spool", job)

    def spawn(self, job: str, *argv: str, keys: Sequence[str | int] = ()) -> Reply:
        """A spool job; answers `started` or the error."""
        arguments = [part for word in argv for part in ("arg", word)]
        with self.spool(job).opened() as fds, self.client() as client:
            return client.ask(
                *("spawn", job, *arguments, "fd", "stdout", "fd", "stderr", "fd", "record", *keys), fds=fds
            )

    def wait(self, job: str) -> list[str]:
        with self.client() as client:
            return client.ask("wait", job).words

    def run(self, job: str, *argv: str, keys: Sequence[str | int] = ()) -> tuple[list[str], str, str]:
        """Spawns, waits, reads: the wait's words, standard output, standard error."""
        reply = self.spawn(job, *argv, keys=keys)
        assert reply.ok, reply.words
        ended = self.wait(job)
        spool = self.spool(job)
        return ended, spool.out.read_text(), spool.err.read_text()

    def shell(self, job: str, script: str, keys: Sequence[str | int] = ()) -> str:
        """What a script of root inside prints; it must succeed."""
        ended, out, err = self.run(job, "/bin/sh", "-c", script, keys=keys)
        assert ended == ["ok", "exit", "0"], (ended, out, err)
        return out


def wait_readable(fd: int, timeout_s: float = 30) -> None:
    import select

    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(timeout_s * 1000), "nothing came"


def read_until(fd: int, end: bytes) -> bytes:
    """From a terminal, until ``end`` is in what was read."""
    text = b""
    while end not in text:
        text += os.read(fd, 4096)
    return text


def until_record(spool: Spool, line: str, timeout_s: float = 30) -> list[str]:
    """Waits for a line of a record, as a reader without inotify would."""
    end = time.monotonic() + timeout_s
    while line not in (lines := spool.lines()):
        assert time.monotonic() < end, f"{line!r} not in {lines}"
        time.sleep(0.005)
    return lines


def until_end(record: int, timeout_s: float = 30) -> bytes:
    """A record by its descriptor, once its last line is there: `wait` is answered at the first one (wsh/PROTOCOL.md)."""
    deadline = time.monotonic() + timeout_s
    while not (text := os.pread(record, 4096, 0)).endswith(b"end\n"):
        assert time.monotonic() < deadline, f"no end in {text!r}"
        time.sleep(0.005)
    return text


def running(folder: Path, build: str, *extra: str | int) -> Iterator[Box]:
    """Body of a fixture: a launched box, ended afterwards; it must have lived until then."""
    box = Box.prepare(folder, build)
    try:
        box.launch(*extra)
        yield box
        assert box.alive(), f"wshd died under the test\n{box.reports()}"
    finally:
        box.kill()
