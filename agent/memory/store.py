"""The files of the agent's memory. Calls block for a short time. Nothing here knows what an instance is.

    db/agent.json               the head: the agent's id, its phase
    db/SECTION/NAME.json        a record
    agent.id                    a copy of the id, in case the head is lost

Mode 0600: a start message holds credentials. Each file is written under another name and renamed, but not synced: syncing would
lengthen the time in which a killed agent forgets, and after a crash of the host no container is left to remember. A file that
cannot be read is set aside as `*.damaged`; the others are still used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.memory import records
from agent.memory.records import Head, Later, OneFile, SavedInstance, SavedStaging, UnreadableRecord

#: No record comes near: what a message may hold is bounded by the bus's largest.
RECORD_BYTES = 16 << 20
INSTANCES, STAGINGS = "instances", "stagings"
HEAD = ""
"""The section of the head, which has one record."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that could not be read, and why. ``later``: a later release wrote it and will read it again; ``handle``: its
    container."""

    path: Path
    why: str
    later: bool = False
    handle: str | None = None


@dataclass(slots=True)
class Remembered:
    """Everything that was read. ``head`` None: there was none, or it is lost."""

    head: Head | None = None
    instances: dict[str, SavedInstance] = field(default_factory=dict)
    stagings: dict[str, SavedStaging] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)


def write_file(path: Path, data: bytes) -> None:
    """Replaces a file. OSError: the old file is unchanged."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)  # a full disk raises: half a record is never renamed
    new.rename(path)


class RecordStore:
    def __init__(self, directory: Path, id_path: Path) -> None:
        self._dir = directory
        self._id_path = id_path

    # -- writing -----------------------------------------------------------------------------------------------

    def write(self, section: str, name: str, data: bytes | None) -> None:
        """Writes a record; None: removes it. Idempotent. OSError: the old file is unchanged."""
        path = self._path(section, name)
        if data is None:
            path.unlink(missing_ok=True)
            return
        try:
            write_file(path, data)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(path, data)

    def write_id(self, agent_id: str) -> None:
        if self._read_id() != agent_id:
            write_file(self._id_path, f"{agent_id}\n".encode())

    def _path(self, section: str, name: str) -> Path:
        return self._dir / (f"{name}.json" if section == HEAD else f"{section}/{name}.json")

    # -- reading -----------------------------------------------------------------------------------------------

    def read(self) -> Remembered:
        """Reads everything. The contents of a file never raise an error; OSError: the directory itself cannot be read."""
        found = Remembered()
        for half_written in self._dir.glob("**/*.new"):
            half_written.unlink(missing_ok=True)
        found.instances = {
            name: msgspec.structs.replace(one, record=name)
            for name, one in self.read_section(INSTANCES, records.decode_instance, found.damage)
        }
        found.stagings = dict(
            self.read_section(STAGINGS, lambda data: records.decode(data, SavedStaging), found.damage)
        )
        self._read_head(found)
        if found.head is None:
            known = self._read_id() or next(
                (one.agent_id for one in found.instances.values() if one.agent_id), None
            )
            found.head = Head(agent_id=known) if known else None
        return found

    def read_section(
        self, section: str, decode: Callable[[bytes], T], damage: list[Damage]
    ) -> Iterable[tuple[str, T]]:
        """The name and record of each readable file. The others are set aside and added to ``damage``."""
        directory = self._dir / section
        if not directory.is_dir():
            return
        for path in sorted(directory.glob("*.json")):
            if (record := self._read_file(path, decode, damage)) is not None:
                yield path.stem, record

    def _read_head(self, found: Remembered) -> None:
        path = self._path(HEAD, "agent")
        head = self._read_file(path, records.decode_head, found.damage)
        if not isinstance(head, OneFile):
            found.head = head
            if head is None and path.exists():  # of a later release: ours takes its place
                path.replace(path.with_suffix(".later"))
            return
        found.head = Head(agent_id=head.agent_id)
        for number, raw in enumerate(head.instances):
            try:
                saved = records.decode_instance(bytes(raw))
            except (UnreadableRecord, Later) as e:
                aside = self._dir / f"instance-{number}.damaged"
                write_file(aside, bytes(raw))
                found.damage.append(Damage(aside, str(e)))
                continue
            # its id names it: an agent that is killed while it takes the file over does so again, under the same names
            found.instances.setdefault(saved.id, msgspec.structs.replace(saved, record=saved.id))
        for staging in head.stagings:
            found.stagings.setdefault(staging_name(staging.task_id, staging.reply_to), staging)

    def _read_file(self, path: Path, decode: Callable[[bytes], T], damage: list[Damage]) -> T | None:
        try:
            with path.open("rb") as file:
                data = file.read(RECORD_BYTES + 1)
            if len(data) > RECORD_BYTES:
                raise UnreadableRecord(f"larger than {RECORD_BYTES} bytes")
            return decode(data)
        except FileNotFoundError:
            return None
        except Later as e:
            damage.append(Damage(path, str(e), later=True, handle=records.handle_of(data)))
        except (UnreadableRecord, OSError) as e:
            damage.append(Damage(self._set_aside(path), str(e)))
        return None

    def _set_aside(self, path: Path) -> Path:
        aside = path.with_suffix(".damaged")
        try:
            path.replace(aside)
        except OSError:  # a directory that lets nothing be renamed: it stays, and is skipped again
            return path
        return aside

    def _read_id(self) -> str | None:
        try:
            text = self._id_path.read_text(errors="replace").strip()
        except OSError:
            return None
        return text if 0 < len(text) <= 64 and text.isprintable() else None


def staging_name(task_id: str, reply_to: str) -> str:
    """The file name for a task. A task's id comes from its sender and must not be used as a file name."""
    return hashlib.sha256(f"{task_id}\0{reply_to}".encode()).hexdigest()[:32]
