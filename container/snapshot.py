"""What must survive a restart of the manager: one file per container, replaced whole, decoded strictly.

It is first written before anything is made that the kernel would not take back (phase ``making``), so that a
manager killed half-way leaves a name behind for each of these. Jobs are not in here: their files in the
spool are. No fsync: after a crash of the host there is nothing left that a snapshot could describe, and the
boot id says so.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from container.spec import EgressRule, Limits, PortMapping

VERSION: Final = 1
FILE_NAME: Final = "snapshot.json"
_LIMIT_BYTES: Final = 4 << 20


class SnapshotError(ValueError):
    """The file is absent, damaged, or of another version. The container cannot be taken up again."""


class Phase(StrEnum):
    MAKING = "making"
    MADE = "made"


class Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int = VERSION
    phase: Phase
    boot_id: str
    handle: str
    link_id: str  # names the cgroup, the interface and the firewall's elements
    ids_first: int
    network: str | None  # the /30
    hostname: str
    limits: Limits
    ports: tuple[PortMapping, ...] = ()
    egress: tuple[EgressRule, ...] = ()
    properties: dict[str, str] = {}
    pid: int = 0
    pid_start_ticks: int = 0  # /proc/PID/stat 22: a number that was given away again has another
    home: bool = False
    stopped: bool = False
    events: tuple[str, ...] = ()


def encode(snapshot: Snapshot) -> bytes:
    return msgspec.json.format(msgspec.json.encode(snapshot), indent=1) + b"\n"


class _Head(msgspec.Struct):
    version: int


def decode(data: bytes) -> Snapshot:
    """Raises SnapshotError. The version is looked at first: it says whether the rest can be judged."""
    try:
        version = msgspec.json.decode(data, type=_Head).version
        if version != VERSION:
            raise SnapshotError(f"version: expected {VERSION}, got {version}")
        return msgspec.json.decode(data, type=Snapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as e:
        if isinstance(e, SnapshotError):
            raise
        raise SnapshotError(str(e)) from e


def write(directory: Path, snapshot: Snapshot) -> None:
    """Replace the file in one step. 0.1 ms."""
    new = directory / (FILE_NAME + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(encode(snapshot))
    new.rename(directory / FILE_NAME)


def read(directory: Path) -> Snapshot:
    try:
        with (directory / FILE_NAME).open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except OSError as e:
        raise SnapshotError(str(e)) from e
    if len(data) > _LIMIT_BYTES:
        raise SnapshotError(f"larger than {_LIMIT_BYTES} bytes")
    return decode(data)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int:
    """When the process began, in clock ticks since boot (proc_pid_stat(5), field 22). Raises
    ProcessLookupError.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as e:
        raise ProcessLookupError(pid) from e
    return int(text[text.rindex(b")") + 2 :].split()[19])
