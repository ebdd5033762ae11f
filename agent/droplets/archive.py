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
    """The limits of a tree that is unpacked. ``ratio`` applies once ``ratio_from_bytes`` have been unpacked, since small bombs are
    harmless.

    ``cpu_base_s``, ``cpu_s_per_mib``: the processor time that an archive may take, by its own size. Real trees of very small files
    take a tenth of it.
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
        """The limit for a whole tar stream, which has headers and padding besides the contents: about three blocks a member."""
        return self.total_bytes + 3 * 512 * self.members

    def cpu_s(self, bytes_in: int) -> float:
        """The processor time that an archive may have taken when ``bytes_in`` of it have been read."""
        return self.cpu_base_s + self.cpu_s_per_mib * bytes_in / MIB


class Kind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive. ``parts`` is empty for the root itself. ``target``: the text of a symbolic link; not used for a hard
    link."""

    kind: Kind
    parts: tuple[bytes, ...]
    mode: int = 0o644
    mtime_s: int = 0
    size_bytes: int = 0
    target: bytes = b""
    target_parts: tuple[bytes, ...] = ()


def shown(name: bytes) -> str:
    """A member's name for a message: short and printable."""
    text = ascii(name[:120].decode("utf-8", "backslashreplace"))[1:-1]
    return text + ("…" if len(name) > 120 else "")


def clean_name(name: bytes) -> tuple[bytes, ...]:
    """The components of a member's name. Names are bytes without an encoding."""
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
    """The text of a symbolic link. It is only stored; nothing here follows it."""
    if not 0 < len(target) <= NAME_BYTES or b"\0" in target:
        raise ArchiveError(f"{shown(name)}: a link to {shown(target)!r}")
    return target
