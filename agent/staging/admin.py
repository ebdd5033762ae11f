"""The admin buildpacks of this host. They come as zips by key and URL; each is kept by its key."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from agent.bus.messages import AdminBuildpack
from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.layers import Layers
from agent.droplets.transfer import TransferError, Transfers
from agent.droplets.unpacker import JailError
from agent.staging.buildpacks import Buildpack, StagingFailed

ATTEMPTS = 3
BUILDPACK_BYTES = 2 << 30


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
