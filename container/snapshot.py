"""What must survive a restart of the manager: one file per container, replaced whole.

A snapshot of an older manager is taken with defaults for what it lacks, and what a newer one has added is ignored. VERSION grows
only when an older manager would misunderstand the file: such a container is `LaterSnapshot`, is left alone, and only what it holds
of the host is read (`decode_holdings`), so that nobody else is given the same.

It is first written before anything is made that the kernel would not take back (phase ``making``), so that a
manager killed half-way leaves a name behind for each of these. Jobs are not in here: their files in the
spool are. No fsync: after a crash of the host there is nothing left that a snapshot could describe, and the
boot id says so.

Beside it lies, where the caller gave one, the caller's own record: bytes that are kept and given back (mode 0600).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

from container.errors import ContainerError
from container.spec import EgressRule, Limits, PortMapping

VERSION: Final = 1
FILE_NAME: Final = "snapshot.json"
RECORD_NAME: Final = "record"
_LIMIT_BYTES: Final = 4 << 20
_RECORD_LIMIT_BYTES: Final = 16 << 20


class SnapshotError(ContainerError, ValueError):
    """The file is absent or damaged. The container cannot be taken up again."""


class LaterSnapshot(SnapshotError):
    """The file is of a later version: its container is another manager's to take up."""


class Phase(StrEnum):
    MAKING = "making"
    MADE = "made"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
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


def encode(snapshot: Snapshot, annotations: Mapping[str, Any] | None = None) -> bytes:
    """The file. ``annotations``: keys of the caller for other readers; those of the snapshot win."""
    whole = {**(annotations or {}), **msgspec.to_builtins(snapshot)}
    return msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"


class _Head(msgspec.Struct):
    version: int


class Holdings(msgspec.Struct, frozen=True):
    """What a container of a later version holds of the host, as far as it can be read."""

    link_id: str | None = None
    ids_first: int | None = None
    network: str | None = None
    ports: tuple[PortMapping, ...] = ()
    egress: tuple[EgressRule, ...] = ()
    limits: Limits | None = None


def decode(data: bytes) -> Snapshot:
    """Raises SnapshotError, LaterSnapshot. The version is looked at first: it says whether the rest can be judged."""
    try:
        version = msgspec.json.decode(data, type=_Head).version
        if version > VERSION:
            raise LaterSnapshot(f"version: expected at most {VERSION}, got {version}")
        if version != VERSION:
            raise SnapshotError(f"version: expected {VERSION}, got {version}")
        return msgspec.json.decode(data, type=Snapshot)
    except SnapshotError:
        raise
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise SnapshotError(str(e)) from e


def decode_holdings(data: bytes) -> Holdings:
    """Field by field: one that has become another kind of thing hides no other."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Holdings()
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(Holdings):
        if field.name in fields:
            with suppress(msgspec.MsgspecError, ValueError, RecursionError):
                found[field.name] = msgspec.json.decode(fields[field.name], type=field.type)
    return Holdings(**found)


def write(directory: Path, snapshot: Snapshot, annotations: Mapping[str, Any] | None = None) -> None:
    """Replace the file in one step. 0.1 ms."""
    _replace(directory / FILE_NAME, encode(snapshot, annotations))


def write_record(directory: Path, record: bytes) -> None:
    """The caller's, beside the snapshot; replaced in one step."""
    _replace(directory / RECORD_NAME, record)


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    new.rename(path)


def read(directory: Path) -> Snapshot:
    """Raises SnapshotError, LaterSnapshot."""
    return decode(_read(directory / FILE_NAME, _LIMIT_BYTES))


def read_holdings(directory: Path) -> Holdings:
    return decode_holdings(_read(directory / FILE_NAME, _LIMIT_BYTES))


def read_record(directory: Path) -> bytes | None:
    """None: the caller gave none, or it cannot be read."""
    try:
        return _read(directory / RECORD_NAME, _RECORD_LIMIT_BYTES)
    except SnapshotError:
        return None


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as e:
        raise SnapshotError(str(e)) from e
    if len(data) > limit_bytes:
        raise SnapshotError(f"larger than {limit_bytes} bytes")
    return data


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
