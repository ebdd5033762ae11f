"""Which buildpacks a staging may use, and what their programs report of an app. Pure.

Order is the message's, then the agent's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agent import plain_yaml

#: As much as a Cloud Controller keeps of it.
LABEL_BYTES = 255
INSIDE = "/tmp/buildpacks"  # noqa: S108  (inside the staging container)


class StagingFailed(RuntimeError):
    """``error`` goes into the reply; ``kind`` and ``message`` too where the Cloud Controller knows such a kind."""

    def __init__(self, error: str, kind: str | None = None, message: str = "") -> None:
        super().__init__(f"{error}{f': {message}' if message else ''}")
        self.error = error
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Buildpack:
    """``key`` is an admin buildpack's; the agent's own have a name only. ``mapped``: its files belong to vcap's plain number,
    as a layer's do.
    """

    name: str
    key: str | None
    path: Path
    mapped: bool = False

    def inside(self, number: int) -> str:
        return f"{INSIDE}/{number}"


def own_buildpacks(directory: Path, order: Sequence[str]) -> tuple[Buildpack, ...]:
    return tuple(Buildpack(name, None, directory / name) for name in order)


def choose(available: Sequence[Buildpack], key: str | None) -> tuple[Buildpack, ...]:
    """Those to be tried: all in order, or exactly the named one (which is not asked whether it fits)."""
    if key is None:
        return tuple(available)
    named = tuple(one for one in available if key in (one.key, one.name))
    if not named:
        raise StagingFailed(
            "Error staging: unknown buildpack", "StagingError", f"buildpack_key {key!r} is not here"
        )
    return named


def label(said: bytes) -> str:
    """What `bin/detect` calls itself: its first line that is not empty, as much of it as a message carries; or nothing."""
    for line in said.decode(errors="replace").splitlines():
        if text := "".join(char if char.isprintable() else " " for char in line).strip():
            return text.encode()[:LABEL_BYTES].decode(errors="ignore")
    return ""


@dataclass(frozen=True, slots=True)
class Release:
    """What `bin/release` prints; the other keys mean nothing here."""

    default_process_types: dict[str, str] = field(default_factory=dict)


def process_types(found: Mapping[str, Any]) -> dict[str, str]:
    """The commands of a map. What is no command is left out, unless it is the one that would run. YamlError."""
    web = found.get("web", "")
    if not isinstance(web, str):
        raise plain_yaml.YamlError("web: expected a command")
    if any(isinstance(value, str) and "\0" in value for value in found.values()):
        raise plain_yaml.YamlError("a NUL byte in a command")
    return {key: value.strip() for key, value in found.items() if isinstance(value, str)}


def parse_release(text: bytes) -> Release:
    try:
        types = plain_yaml.load_map(text).get("default_process_types") or {}
        if not isinstance(types, dict):
            raise plain_yaml.YamlError("default_process_types: expected a map")
        return Release(process_types(types))
    except plain_yaml.YamlError as e:
        raise release_failed(str(e)) from e


def release_failed(why: str) -> StagingFailed:
    return StagingFailed(
        "Script exited with status 1", "BuildpackReleaseFailed", f"Release info failed: {why}"
    )


def parse_procfile(text: bytes) -> dict[str, str]:
    """A YAML map of process types; anything else is an error of the app's."""
    try:
        return process_types(plain_yaml.load_map(text))
    except plain_yaml.YamlError as e:
        raise StagingFailed("Script exited with status 1", "StagingError", f"Procfile is no map: {e}") from e


@dataclass(frozen=True, slots=True)
class Outcome:
    """What staging_info.yml and the second reply say. ``source``: where the command comes from."""

    buildpack: Buildpack
    detected_name: str
    start_command: str | None
    processes: dict[str, str]
    source: str = ""

    def staging_info(self) -> bytes:
        info = {
            "buildpack_path": self.buildpack.name,
            "detected_buildpack": self.detected_name,
            "start_command": self.start_command or "",
            "effective_procfile": self.processes,
        }
        return yaml.safe_dump(info, sort_keys=False).encode()

    def announced(self) -> str:
        """The line that a developer reads: the very command that is started."""
        if self.start_command is None:
            return "-----> No start command: neither the Procfile nor the buildpack names a web process"
        return f"-----> Start command: {self.start_command} ({self.source})"


def decide(
    buildpack: Buildpack,
    detected_name: str,
    meta_command: str | None,
    procfile: dict[str, str] | None,
    release: Release,
) -> Outcome:
    """The start command: the user's, else the Procfile's `web`, else the release's
    (docs/apps.md, "Staging: what a buildpack is promised")."""
    processes = dict(procfile if procfile is not None else release.default_process_types)
    released = release.default_process_types.get("web")
    if meta_command:
        return Outcome(buildpack, detected_name, meta_command, processes, "given with the app")
    if web := (procfile or {}).get("web"):
        return Outcome(buildpack, detected_name, web, processes, "Procfile")
    if released:  # also where a Procfile leaves it out: what is announced is what runs
        return Outcome(buildpack, detected_name, released, {**processes, "web": released}, "buildpack")
    return Outcome(buildpack, detected_name, None, processes)
