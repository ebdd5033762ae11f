"""Which buildpacks a staging may use, where they are on this host, and what theirs tell of an app.

Admin buildpacks come as zips by key and URL; each is kept by its key. Order is the message's, then the agent's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import yaml

from agent import plain_yaml
from agent.bus.messages import AdminBuildpack
from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.layers import Layers
from agent.droplets.transfer import TransferError, Transfers
from agent.droplets.unpacker import JailError

ATTEMPTS = 3
BUILDPACK_BYTES = 2 << 30
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
    """``key`` is an admin buildpack's; the agent's own have a name only."""

    name: str
    key: str | None
    path: Path

    def inside(self, number: int) -> str:
        return f"{INSIDE}/{number}"


def own_buildpacks(directory: Path, order: Sequence[str]) -> tuple[Buildpack, ...]:
    return tuple(Buildpack(name, None, directory / name) for name in order)


class AdminBuildpacks:
    """One download a key, however many stagings ask for it; what is here is never waited for."""

    def __init__(self, directory: Path, transfers: Transfers, layers: Layers) -> None:
        self._dir = directory
        self._transfers = transfers
        self._layers = layers
        self._lock = asyncio.Lock()

    async def fetch(self, wanted: Sequence[AdminBuildpack]) -> tuple[Buildpack, ...]:
        """Those of the message, in its order. StagingFailed: one cannot be had."""
        found = []
        for one in wanted:
            if not is_url(one.url):
                continue  # the original drops them (dea-bus.md 3.1)
            path = self._dir / hashlib.sha256(one.key.encode()).hexdigest()[:32]
            if not path.exists():
                async with self._lock:
                    if not path.exists():
                        await self._fetch_one(one, path)
            found.append(Buildpack(one.key, one.key, path))
        return tuple(found)

    async def _fetch_one(self, one: AdminBuildpack, path: Path) -> None:
        archive, new = path.with_suffix(".zip"), path.with_suffix(".new")
        archive.unlink(missing_ok=True)
        self._layers.throw_away(new)  # an agent that was killed may have left it
        try:
            await self._download(one, archive)
            await self._layers.import_zip(archive, new, Bounds(total_bytes=BUILDPACK_BYTES))
            new.rename(path)
        except TransferError as e:
            raise StagingFailed(
                "Error staging: buildpack cannot be fetched", "StagingError", f"{one.key}: {e}"
            ) from e
        except ArchiveError as e:
            raise StagingFailed("Error staging: buildpack refused", "StagingError", f"{one.key}: {e}") from e
        except (JailError, OSError) as e:
            raise StagingFailed(
                "Error staging: buildpack cannot be stored", "StagingError", f"{one.key}: {e}"
            ) from e
        finally:
            archive.unlink(missing_ok=True)

    async def _download(self, one: AdminBuildpack, archive: Path) -> None:
        """Tried again at once: a Cloud Controller behind a load balancer answers from another one."""
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(TransferError):
                await self._transfers.download_file(one.url, archive, limit_bytes=BUILDPACK_BYTES)
                return
        await self._transfers.download_file(one.url, archive, limit_bytes=BUILDPACK_BYTES)


def is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


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


class Release(msgspec.Struct, frozen=True):
    """What `bin/release` prints."""

    default_process_types: dict[str, str] = {}


def parse_release(text: bytes) -> Release:
    try:
        return plain_yaml.load(text, Release)
    except plain_yaml.YamlError as e:
        raise release_failed(str(e)) from e


def release_failed(why: str) -> StagingFailed:
    return StagingFailed(
        "Script exited with status 1", "BuildpackReleaseFailed", f"Release info failed: {why}"
    )


def parse_procfile(text: bytes) -> dict[str, str]:
    """A YAML map of process types; anything else is an error of the app's."""
    try:
        return plain_yaml.load(text, dict[str, str])
    except plain_yaml.YamlError as e:
        raise StagingFailed("Script exited with status 1", "StagingError", f"Procfile is no map: {e}") from e


@dataclass(frozen=True, slots=True)
class Outcome:
    """What staging_info.yml and the second reply say."""

    buildpack: Buildpack
    detected_name: str
    start_command: str | None
    processes: dict[str, str]

    def staging_info(self) -> bytes:
        info = {
            "buildpack_path": self.buildpack.name,
            "detected_buildpack": self.detected_name,
            "start_command": self.start_command or "",
            "effective_procfile": self.processes,
        }
        return yaml.safe_dump(info, sort_keys=False).encode()


def decide(
    buildpack: Buildpack,
    detected_name: str,
    meta_command: str | None,
    procfile: dict[str, str] | None,
    release: Release,
) -> Outcome:
    """The start command: the user's, else the Procfile's `web`, else the release's (dea-bus.md 3.3)."""
    processes = procfile if procfile is not None else release.default_process_types
    command = meta_command or (procfile or {}).get("web") or release.default_process_types.get("web")
    return Outcome(buildpack, detected_name, command, dict(processes))
