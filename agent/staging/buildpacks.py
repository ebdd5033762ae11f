"""The buildpacks that a staging may use, and how the output of their programs is read. Pure.

The admin buildpacks of the message are tried first, in its order, then the agent's own in theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agent import plain_yaml

#: The Cloud Controller stores no more of a detected buildpack's name.
LABEL_BYTES = 255
INSIDE = "/tmp/buildpacks"  # noqa: S108  (inside the staging container)


class StagingFailed(RuntimeError):
    """``error`` is the reply's error text. ``kind`` and ``message`` become its ``error_info``; without a kind it has none."""

    def __init__(self, error: str, kind: str | None = None, message: str = "") -> None:
        super().__init__(f"{error}{f': {message}' if message else ''}")
        self.error = error
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Buildpack:
    """``key``: None for the agent's own buildpacks. ``mapped``: the files on the host belong to vcap's number inside, as those
    of a layer do, so the mount must map ids.
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
    """The buildpacks to try: all of them, or only the one with this key or name. StagingFailed: there is none.

    A named buildpack is used without its `bin/detect`.
    """
    if key is None:
        return tuple(available)
    named = tuple(one for one in available if key in (one.key, one.name))
    if not named:
        raise StagingFailed(
            "Error staging: unknown buildpack", "StagingError", f"buildpack_key {key!r} is not on this host"
        )
    return named


def label(output: bytes) -> str:
    """The buildpack's name as `bin/detect` prints it: the first line that is not blank, cut to `LABEL_BYTES`; may be empty."""
    for line in output.decode(errors="replace").splitlines():
        if text := "".join(char if char.isprintable() else " " for char in line).strip():
            return text.encode()[:LABEL_BYTES].decode(errors="ignore")
    return ""


@dataclass(frozen=True, slots=True)
class Release:
    """The output of `bin/release`, as far as it is used: its other keys are ignored."""

    default_process_types: dict[str, str] = field(default_factory=dict)


def process_types(found: Mapping[str, Any]) -> dict[str, str]:
    """The commands of a map of process types; an entry that is not a text is left out.

    YamlError: `web`, which would be started, is not a text; or a command contains a NUL byte.
    """
    web = found.get("web", "")
    if not isinstance(web, str):
        kind = "list" if isinstance(web, list) else "map"
        raise plain_yaml.YamlError(f"web: expected a command, got a {kind}")
    for name, value in found.items():
        if isinstance(value, str) and "\0" in value:
            raise plain_yaml.YamlError(f"{name}: a command cannot contain a NUL byte")
    return {key: value.strip() for key, value in found.items() if isinstance(value, str)}


def parse_release(text: bytes) -> Release:
    """StagingFailed: the text is not a YAML map, or its process types are not a map of commands."""
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
    """The process types of a Procfile. StagingFailed: it is not a YAML map of commands."""
    try:
        return process_types(plain_yaml.load_map(text))
    except plain_yaml.YamlError as e:
        raise StagingFailed("Script exited with status 1", "StagingError", f"Procfile: {e}") from e


@dataclass(frozen=True, slots=True)
class Outcome:
    """The content of staging_info.yml and of the last reply. ``source``: where the start command comes from, for developers."""

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
        """The line for the staging's output. It shows exactly the command that will be started."""
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
    """Choose the start command: the user's, else `web` of the Procfile, else `web` of the release
    (docs/apps.md, "Staging: what a buildpack is promised")."""
    processes = dict(procfile if procfile is not None else release.default_process_types)
    released = release.default_process_types.get("web")
    if meta_command:
        return Outcome(buildpack, detected_name, meta_command, processes, "given with the app")
    if web := (procfile or {}).get("web"):
        return Outcome(buildpack, detected_name, web, processes, "Procfile")
    if released:  # a Procfile without `web` gets it too: the reply must list the command that is started
        return Outcome(buildpack, detected_name, released, {**processes, "web": released}, "buildpack")
    return Outcome(buildpack, detected_name, None, processes)
