"""What an archive may ask for, whatever its format: bounds, kinds of members, clean names.

Pure. Readers yield `Member`s; a member that exists has a name that stays inside and a kind that may be written.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from wsh.units import MIB

NAME_BYTES = 4095
COMPONENT_BYTES = 255
DEPTH = 128


class ArchiveError(ValueError):
    """The archive is refused; the text names the member and the cause."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a tree may be. ``ratio`` counts once ``ratio_from_bytes`` have come out (small bombs are harmless).

    ``cpu_base_s``, ``cpu_s_per_mib``: the processor time that an archive may cost, by its own bytes. Real trees of the smallest
    files take a tenth of it on the machine that this was measured on.
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
        """A whole tar: headers and padding come on top of contents, about three blocks a member."""
        return self.total_bytes + 3 * 512 * self.members

    def cpu_s(self, bytes_in: int) -> float:
        """What an archive of which ``bytes_in`` have been read may have cost so far."""
        return self.cpu_base_s + self.cpu_s_per_mib * bytes_in / MIB


class Kind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. ``parts`` is empty for the root itself; ``target``: link text, or for a hard link unused."""

    kind: Kind
    parts: tuple[bytes, ...]
    mode: int = 0o644
    mtime_s: int = 0
    size_bytes: int = 0
    target: bytes = b""
    target_parts: tuple[bytes, ...] = ()


def shown(name: bytes) -> str:
    """A name for a message: short, printable."""
    text = ascii(name[:120].decode("utf-8", "backslashreplace"))[1:-1]
    return text + ("…" if len(name) > 120 else "")


def clean_name(name: bytes) -> tuple[bytes, ...]:
    """The components of a member's name; names are bytes and mean nothing else."""
    if len(name) > NAME_BYTES:
        raise ArchiveError(f"{shown(name)}: a name of {len(name)} bytes, at most {NAME_BYTES} are taken")
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
    """A symbolic link's text: data, never followed by us."""
    if not 0 < len(target) <= NAME_BYTES or b"\0" in target:
        raise ArchiveError(f"{shown(name)}: a link to {shown(target)!r}")
    return target
