"""Lists the TCP ports that are listened on in a container, for a developer whose app is not reachable. Read from the kernel's
tables."""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path

LISTEN = "0A"  # TCP_LISTEN of include/net/tcp_states.h
#: An app may open ports by the thousand; the first few explain as much.
LIMIT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    address: str
    port: int


def parse(table: str) -> tuple[Listener, ...]:
    """The listeners of a /proc/PID/net/tcp or tcp6, each once. Lines that are no row are skipped. Pure."""
    found = set()
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) < 4 or words[3] != LISTEN:
            continue
        address, _, port = words[1].partition(":")
        try:
            found.add(Listener(_address(bytes.fromhex(address)), int(port, 16)))
        except ValueError:
            continue
    return tuple(sorted(found))


def _address(raw: bytes) -> str:
    """The kernel prints an address as words in the host's byte order (proc_pid_net(5)). ValueError: the text is no address."""
    if len(raw) not in (4, 16):
        raise ValueError(f"an address of {len(raw)} bytes")
    words = (int.from_bytes(raw[at : at + 4], "big") for at in range(0, len(raw), 4))
    address = ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    return str(getattr(address, "ipv4_mapped", None) or address)


def of(pid: int) -> tuple[Listener, ...]:
    """The listeners in the network namespace of a process. OSError: the process has ended."""
    tables = []
    for name in ("tcp", "tcp6"):
        with Path(f"/proc/{pid}/net/{name}").open() as file:
            tables.append(parse(file.read(LIMIT_BYTES)))
    return tuple(sorted({one for table in tables for one in table}))
