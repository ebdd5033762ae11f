"""Helpers of the network tests: namespaces that threads enter, a network behind the host, and services that reply with their name.

A socket belongs to the namespace of the thread that made it, and any thread may use it afterwards. So the test itself sends
and receives inside a container, on the host and behind it, and needs no process there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")
_CLONE_NEWNET: Final = 0x40000000
_IP_PKTINFO: Final = 8  # the module socket of 3.11 does not name it
_libc = ctypes.CDLL(None, use_errno=True)

TCP: Final = socket.SOCK_STREAM
UDP: Final = socket.SOCK_DGRAM
PROTOCOLS: Final = {"tcp": TCP, "udp": UDP}

#: Networks for documentation (RFC 5737). 192.0.2.1 is the test host's other address (testhost.py).
HOST_IP: Final = "198.51.100.1"
WORLD_IP: Final = "198.51.100.2"
FAR_NETWORK: Final = "203.0.113.0/24"  # all of it is the world's
FAR_IP: Final = "203.0.113.1"
DNS_IP: Final = "203.0.113.53"
METADATA_IP: Final = "169.254.169.254"

#: How long a silent "no" may take; a refused one says so at once.
SILENCE_S: Final = 0.3
DEADLINE_S: Final = 20.0


class Namespace:
    """A network namespace by its descriptor; goes with the last link or process in it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def new(cls) -> Namespace:
        def make() -> int:
            _check(_libc.unshare(_CLONE_NEWNET), "unshare")
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        return cls(_in_a_thread(make))

    @classmethod
    def of(cls, pid: int | str) -> Namespace:
        return cls(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    def do(self, work: Callable[[], T]) -> T:
        """``work`` by a thread that lives here."""

        def inside() -> T:
            _check(_libc.setns(self.fd, _CLONE_NEWNET), "setns")
            return work()

        return _in_a_thread(inside)

    @contextlib.contextmanager
    def inhabited(self) -> Iterator[int]:
        """The number of a thread that lives here meanwhile; the kernel takes it where it takes a pid."""
        number: Future[int] = Future()
        done = threading.Event()

        def live() -> None:
            number.set_result(threading.get_native_id())
            done.wait()

        with ThreadPoolExecutor(1) as thread:
            living = thread.submit(self.do, live)
            try:
                yield number.result(DEADLINE_S)
            finally:
                done.set()
            living.result()

    def run(self, *argv: str) -> str:
        done = self.do(lambda: subprocess.run(argv, capture_output=True, text=True, check=False))
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
        return done.stdout

    def socket(self, kind: int, family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
        return self.do(lambda: socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol))

    def close(self) -> None:
        os.close(self.fd)


def _in_a_thread(work: Callable[[], T]) -> T:
    """A fresh one: it has changed namespace and must not be used for anything else."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@dataclass(slots=True)
class Heard:
    """One thing that a service was told: where, by whom."""

    name: str
    token: bytes
    peer: str


@dataclass
class Services:
    """TCP and UDP services in any namespace; each answers `NAME PEER` and remembers what it was told."""

    heard: list[Heard] = field(default_factory=list)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _fresh: list[tuple[socket.socket, str]] = field(default_factory=list)
    _names: dict[socket.socket, str] = field(default_factory=dict)
    _ending: list[tuple[str, threading.Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waker, self._wake = socket.socketpair()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="services")
        self._thread.start()

    def add(self, name: str, where: Namespace, kind: int, port: int, address: str = "") -> None:
        """Listens from here on, until `end` or `close`."""
        listener = where.socket(kind)
        if kind == TCP:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            listener.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        listener.bind((address, port))
        if kind == TCP:
            listener.listen(64)
        listener.setblocking(False)
        self._fresh.append((listener, name))
        self._wake.send(b"+")

    def end(self, name: str) -> None:
        """Closes all of that name; a socket holds the namespace that it was made in."""
        done = threading.Event()
        self._ending.append((name, done))
        self._wake.send(b"-")
        assert done.wait(DEADLINE_S)

    def tokens(self, name: str) -> list[bytes]:
        return [one.token for one in self.heard if one.name == name]

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._waker:
                    if b"." in self._waker.recv(64):
                        return
                    self._turn()
                    break  # what was selected may have been closed
                assert isinstance(key.fileobj, socket.socket)
                # an ICMP error of a former answer, or a client that has gone: nobody waits for it
                with contextlib.suppress(OSError):
                    self._one(key.fileobj, key.data)

    def _turn(self) -> None:
        while self._fresh:
            self._take(*self._fresh.pop(0))
        while self._ending:
            name, done = self._ending.pop(0)
            for one in [one for one, whose in self._names.items() if whose == name]:
                self._drop(one)
            done.set()

    def _take(self, one: socket.socket, name: str) -> None:
        self._names[one] = name
        self._selector.register(one, selectors.EVENT_READ, name)

    def _drop(self, one: socket.socket) -> None:
        self._selector.unregister(one)
        del self._names[one]
        one.close()

    def _one(self, ready: socket.socket, name: str) -> None:
        if ready.type == UDP:
            token, (told,), _, peer = ready.recvmsg(2048, 64)
            self.heard.append(Heard(name, token, peer[0]))
            # from the address that was asked, of the many that the world has
            asked = struct.pack("=i4s4s", 0, told[2][8:12], bytes(4))
            told_back = [(socket.IPPROTO_IP, _IP_PKTINFO, asked)]
            ready.sendmsg([token + f" {name} {peer[0]}".encode()], told_back, 0, peer)
        elif ready.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            made, _ = ready.accept()
            made.setblocking(False)
            self._take(made, name)
        elif token := self._read(ready):
            peer = ready.getpeername()
            self.heard.append(Heard(name, token, peer[0]))
            ready.send(token + f" {name} {peer[0]}".encode())
        else:
            self._drop(ready)

    @staticmethod
    def _read(connection: socket.socket) -> bytes:
        try:
            return connection.recv(2048)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._wake.send(b".")
        self._thread.join()
        for one in self._names:
            one.close()
        for end in (self._wake, self._waker):
            end.close()
        self._selector.close()


#: EINVAL: a link without IPv6 was named as the scope.
_REFUSALS: Final = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EADDRNOTAVAIL,
    errno.EINVAL,
}
_tokens = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answered, and whom it took for its peer. No name: nobody did."""

    name: str = ""
    peer: str = ""
    token: bytes = b""
    refused: bool = False

    def __bool__(self) -> bool:
        return bool(self.name)


def ask(
    where: Namespace,
    kind: int,
    address: str,
    port: int,
    *,
    source: str = "",
    source_port: int = 0,
    family: int = socket.AF_INET,
    wait_s: float = SILENCE_S,
) -> Answer:
    """Say something from there, and who answered; a refusal is an answer without a name."""
    token = f"t{next(_tokens)}".encode()
    with where.socket(kind, family) as mouth:
        if source or source_port:
            mouth.bind((source, source_port))
        mouth.settimeout(wait_s)
        return talk(mouth, token, (address, port))


def talk(mouth: socket.socket, token: bytes, to: tuple[str, int] | None = None) -> Answer:
    """One question on a socket, connected first if ``to`` is given."""
    try:
        if to is not None:
            mouth.connect(to)
        mouth.send(token)
        said = mouth.recv(2048)
    except TimeoutError:
        return Answer(token=token)
    except OSError as e:
        if e.errno not in _REFUSALS:
            raise
        return Answer(token=token, refused=True)
    if not said:
        return Answer(token=token, refused=True)
    echoed, name, peer = said.decode().split(" ")
    assert echoed.encode() == token
    return Answer(name, peer, token)


class World:
    """Another machine, behind the host's second uplink: many addresses, a resolver, a metadata service."""

    PORTS: Final = (80, 8080, 8081, 9000)

    def __init__(self, stack: ExitStack) -> None:
        self.host = Namespace.of("thread-self")
        stack.callback(self.host.close)
        self.space = Namespace.new()
        stack.callback(self.space.close)
        self.services = Services()
        stack.callback(self.services.close)
        # a refused datagram is told of each time, not once a second
        ratelimit = Path("/proc/sys/net/ipv4/icmp_ratelimit")
        stack.callback(ratelimit.write_text, ratelimit.read_text())
        ratelimit.write_text("0")
        self._wire(stack)

    def _wire(self, stack: ExitStack) -> None:
        host, space = self.host, self.space
        host.run("ip", "link", "add", "uplink2", "type", "veth", "peer", "name", "uplink3")
        stack.callback(host.run, "ip", "link", "del", "uplink2")
        host.do(lambda: _move("uplink3", space))
        host.run("ip", "address", "add", f"{HOST_IP}/24", "dev", "uplink2")
        host.run("ip", "link", "set", "uplink2", "up")
        for network in (FAR_NETWORK, METADATA_IP):
            host.run("ip", "route", "add", network, "via", WORLD_IP)
        space.run("ip", "link", "set", "lo", "up")
        space.run("ip", "address", "add", f"{WORLD_IP}/24", "dev", "uplink3")
        space.run("ip", "link", "set", "uplink3", "up")
        space.run("ip", "route", "add", "default", "via", HOST_IP)
        for network in (FAR_NETWORK, METADATA_IP):
            space.run("ip", "route", "add", "local", network, "dev", "lo")
        for port in (53, *self.PORTS):
            for kind in (TCP, UDP):
                self.services.add("world", space, kind, port)


def _move(name: str, into: Namespace) -> None:
    done = subprocess.run(
        ["ip", "link", "set", name, "netns", f"/proc/self/fd/{into.fd}"],
        pass_fds=(into.fd,), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def settle(where: Namespace, port: int, services: Services, name: str) -> None:
    """Until a UDP service has read all that came before: its queue is one, so what is asked last is heard last."""
    deadline = time.monotonic() + DEADLINE_S
    while not ask(where, UDP, "127.0.0.1", port, wait_s=1.0):
        assert time.monotonic() < deadline, f"the service {name} at {port} does not answer its own host"
