"""The buffers of sockets count as the memory of an app. Runs on the hierarchy that this kernel has: v1 or v2 (`make vm-test`)."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from cgroups_kit import Inside, backend, box, directories

from container.cgroups import Cgroups, CgroupSet, Version, host_hierarchy, open_backend

__all__ = ["backend", "box"]  # fixtures by import
pytestmark = pytest.mark.kernel

MIB = 1 << 20
#: What a child would hold if nobody stopped it.
GREED_BYTES = 300 * MIB
V1 = host_hierarchy().version is Version.V1
LOOPBACK = ("127.0.0.1", 0)


def fill_tcp(greed_bytes: int = GREED_BYTES) -> tuple[list[socket.socket], int]:
    """Connections to itself that nobody reads from; with the bytes that the kernel has taken."""
    listener = socket.create_server(LOOPBACK, backlog=200)
    held, taken = [listener], 0
    while taken < greed_bytes and len(held) < 400:
        near = socket.create_connection(listener.getsockname())
        held += [near, listener.accept()[0]]
        near.setblocking(False)
        begun = taken
        try:
            while taken - begun < 6 * MIB:
                taken += near.send(b"x" * 65536)
        except BlockingIOError:
            continue
    return held, taken


def fill_udp() -> tuple[list[socket.socket], int]:
    """Sockets full of datagrams; with the bytes that lie in them."""
    sender = socket.socket(type=socket.SOCK_DGRAM)
    receivers = []
    for _ in range(900):
        receiver = socket.socket(type=socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        receiver.bind(LOOPBACK)
        receiver.setblocking(False)
        receivers.append(receiver)
        for _ in range(8):
            sender.sendto(b"x" * 60_000, receiver.getsockname())
    return [sender, *receivers], sum(len(data) for one in receivers for data in peeked(one))


def peeked(receiver: socket.socket) -> list[bytes]:
    """All that lies there. It is read, so this is the end of the test's measuring."""
    found = []
    while True:
        try:
            found.append(receiver.recv(65536))
        except BlockingIOError:
            return found


FILLERS = {"tcp": fill_tcp, "udp": fill_udp}


def held_by(box: CgroupSet, fill: Callable[[], tuple[list[socket.socket], int]], told: Path) -> int:
    """Bytes that one child could leave in its sockets."""

    def work() -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        told.write_text(str(fill()[1]))

    told.write_text("0")
    ended = Inside(box, work).wait()
    if ended == -signal.SIGKILL and not V1:
        assert box.oom_kills() > 0  # there a limit may also hold by a kill, as for any memory
        return 0
    assert ended == 0
    return int(told.read_text())


@pytest.mark.parametrize("kind", FILLERS)
def test_sockets_do_not_hold_more_than_half_the_limit_again(
    box: CgroupSet, tmp_path: Path, kind: str
) -> None:
    """64 MiB of memory: at most 96 in all. Without a limit the same child holds hundreds, as its twin shows."""
    box.set_memory(64 * MIB)

    held = held_by(box, FILLERS[kind], tmp_path / "told")

    assert held <= (32 if V1 else 64) * MIB
    assert held > MIB or not V1
    box.set_memory(None)
    assert held_by(box, FILLERS[kind], tmp_path / "told") > 96 * MIB


@pytest.mark.parametrize("kind", FILLERS)
def test_what_sockets_hold_is_counted(box: CgroupSet, backend: Cgroups, kind: str) -> None:
    """v1: beside the memory, in a counter that is TCP's by name only; v2: as memory."""

    def work() -> None:
        held, _ = fill_tcp(24 * MIB) if kind == "tcp" else hold_udp()
        os.kill(os.getpid(), signal.SIGSTOP)
        del held

    def hold_udp() -> tuple[list[socket.socket], int]:
        receiver, sender = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
        receivers = [receiver]
        for _ in range(100):
            receivers.append(socket.socket(type=socket.SOCK_DGRAM))
            receivers[-1].bind(LOOPBACK)
            for _ in range(3):
                sender.sendto(b"x" * 60_000, receivers[-1].getsockname())
        return [sender, *receivers], 0

    box.set_memory(256 * MIB)
    child = Inside(box, work)
    os.waitpid(child.pid, os.WUNTRACED)

    if V1:
        (top,) = (one for one in directories(backend, "box") if (one / "job/memory.stat").exists())
        counted = int((top / "job/memory.kmem.tcp.usage_in_bytes").read_text())
    else:
        counted = box.memory_stat()["sock"]
    assert counted > 4 * MIB
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_the_limit_of_sockets_follows_the_limit_of_memory(box: CgroupSet, backend: Cgroups) -> None:
    """Up, down and away; on v2 there is none of its own."""
    found = [top / "job/memory.kmem.tcp.limit_in_bytes" for top in directories(backend, "box")]
    files = [path for path in found if path.exists()]
    assert len(files) == (1 if V1 else 0)

    for memory_mib, socket_mib in ((64, 16), (1024, 256), (16, 8)):
        box.set_memory(memory_mib * MIB)
        assert [int(path.read_text()) for path in files] == [socket_mib * MIB] * len(files)

    box.set_memory(None)
    assert all(int(path.read_text()) > 1 << 60 for path in files)


@pytest.mark.skipif(not V1, reason="v2 has one counter, and kills")
def test_below_what_sockets_hold_both_limits_stay(box: CgroupSet) -> None:
    """The refusal names the file, and leaves memory as it was."""

    def work() -> None:
        held = fill_tcp()
        os.kill(os.getpid(), signal.SIGSTOP)
        del held

    box.set_memory(128 * MIB)
    child = Inside(box, work)
    os.waitpid(child.pid, os.WUNTRACED)

    with pytest.raises(OSError, match=r"memory\.kmem\.tcp\.limit_in_bytes"):
        box.set_memory(32 * MIB)

    assert box.memory_limit_bytes() == 128 * MIB
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert box.set_memory(32 * MIB) == 32 * MIB


@pytest.mark.skipif(not V1, reason="v2 has no counter of its own")
def test_a_kernel_without_the_counter_is_said_and_memory_is_limited_all_the_same(
    backend: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be built without the network's half of the controller."""
    assert backend.gaps == ()
    monkeypatch.setattr("container.cgroups.v1._TCP", "memory.no.such.file")

    assert open_backend(backend.parent).gaps == (
        "no memory.no.such.file: buffers of sockets are not limited",
    )
    assert backend.create("without").set_memory(64 * MIB) == 64 * MIB
