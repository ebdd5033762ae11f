"""Limits on archives, and their members in a form that both formats share. Pure.

Invariant: a `Member` that a reader yields is safe to write. Its name cannot lead out of the tree, and its kind is one of `Kind`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from wsh.units import MIB

NAME_BYTES = 4095
COMPONENT_BYTES = 255
DEPTH = 128


class ArchiveError(ValueError):
    """The archive is refused. The text names the member and the cause."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one archive.

    ``total_bytes``: of all contents together. ``ratio``: unpacked to packed bytes; it applies only beyond ``ratio_from_bytes`` of
    unpacked data, since small bombs are harmless. ``low_water_bytes``: free disk that must be left; 0: not checked.
    ``cpu_base_s``, ``cpu_s_per_mib``: processor time, per archive and per MiB of it. Real archives with the smallest files need a
    tenth of that.
    """

    total_bytes: int
    members: int = 200_000
    ratio: int = 250
    ratio_from_bytes: int = 128 << 20
    low_water_bytes: int = 0
    cpu_base_s: float = 5.0
    cpu_s_per_mib: float = 2.0

    @property
    def stream_bytes(self) -> int:
        """The limit of a tar stream: the contents, and about three blocks of headers and padding for each member."""
        return self.total_bytes + 3 * 512 * self.members

    def cpu_s(self, bytes_in: int) -> float:
        """The processor time that is allowed, in seconds, when ``bytes_in`` of the archive have been read."""
        return self.cpu_base_s + self.cpu_s_per_mib * bytes_in / MIB


class Kind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive. ``parts``: its name; empty for the root. ``target``: the text of a symbolic link. ``target_parts``:
    the name that a hard link refers to."""

    kind: Kind
    parts: tuple[bytes, ...]
    mode: int = 0o644
    mtime_s: int = 0
    size_bytes: int = 0
    target: bytes = b""
    target_parts: tuple[bytes, ...] = ()


def shown(name: bytes) -> str:
    """A name as it may appear in a message: short and printable."""
    text = ascii(name[:120].decode("utf-8", "backslashreplace"))[1:-1]
    return text + ("…" if len(name) > 120 else "")


def clean_name(name: bytes) -> tuple[bytes, ...]:
    """The components of a member's name. Names are bytes without an encoding. Raises ArchiveError."""
    if len(name) > NAME_BYTES:
        raise ArchiveError(f"{shown(name)}: expected a name of at most {NAME_BYTES} bytes, got {len(name)}")
    if b"\0" in name:
        raise ArchiveError(f"{shown(name)}: a NUL byte in a name")
    if name.startswith(b"/"):
        raise ArchiveError(f"{shown(name)}: an absolute name")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise ArchiveError(f"{shown(name)}: '..' in a name")
    if len(parts) > DEPTH:
        raise ArchiveError(f"{shown(name)}: deeper than {DEPTH} directories")
    if any(len(part) > COMPONENT_BYTES for part in parts):
        raise ArchiveError(f"{shown(name)}: a component longer than {COMPONENT_BYTES} bytes")
    return parts


def clean_target(name: bytes, target: bytes) -> bytes:
    """The checked text of a symbolic link. It may lead out of the tree, since the agent never follows it. Raises ArchiveError."""
    if not 0 < len(target) <= NAME_BYTES or b"\0" in target:
        raise ArchiveError(
            f"{shown(name)}: expected a link target of 1 to {NAME_BYTES} bytes without NUL, got '{shown(target)}'"
        )
    return target
