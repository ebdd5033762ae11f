"""The admin buildpacks of this host. They come as zips by key and URL; each is kept by its key.

As in the original, what the newest message does not list and no staging uses goes. A message without a list changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from agent.bus.messages import AdminBuildpack
from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.layers import Layers
from agent.droplets.transfer import TransferError, Transfers
from agent.droplets.unpacker import JailError
from agent.logs import Log
from agent.staging.buildpacks import Buildpack, StagingFailed

ATTEMPTS = 3
BUILDPACK_BYTES = 2 << 30


class AdminBuildpacks:
    """One download a key, however many stagings ask for it; what is here is never waited for."""

    def __init__(self, directory: Path, transfers: Transfers, layers: Layers, log: Log) -> None:
        self._dir = directory
        self._transfers = transfers
        self._layers = layers
        self._log = log
        self._locks: WeakValueDictionary[str, asyncio.Lock] = (
            WeakValueDictionary()
        )  # by name, of fetches under way
        self._used: Counter[str] = Counter()
        self._listed: frozenset[str] | None = None

    @contextlib.contextmanager
    def use(self, wanted: Sequence[AdminBuildpack] | None) -> Iterator[None]:
        """Within the block those of a message stay. None: it has no list."""
        names = [_name(one.key) for one in wanted or ()]
        if wanted is not None:
            self._listed = frozenset(names)
        self._used.update(names)
        self._sweep()
        try:
            yield
        finally:
            self._used.subtract(names)
            self._sweep()

    def _sweep(self) -> None:
        """Half a download of a former agent goes too. A disk that cannot be changed costs no staging."""
        if self._listed is None:
            return
        try:
            for path in tuple(self._dir.iterdir()):
                name = path.name.partition(".")[0]
                if name not in self._listed and self._used[name] <= 0:
                    self._log.info("admin_buildpack_removed", name=name)
                    self._layers.throw_away(path)
        except OSError as e:
            self._log.warning("admin_buildpacks_not_removed", error=str(e))

    async def fetch(self, wanted: Sequence[AdminBuildpack]) -> tuple[Buildpack, ...]:
        """Those of the message, in its order. StagingFailed: one cannot be had."""
        found = []
        for one in wanted:
            if not is_url(one.url):
                continue  # the original drops them
            path = self._dir / _name(one.key)
            if not path.exists():
                lock = self._locks.setdefault(path.name, asyncio.Lock())
                async with lock:  # of this one alone: another may trickle
                    if not path.exists():
                        await self._fetch_one(one, path)
            found.append(Buildpack(one.key, one.key, path, mapped=True))
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


def _name(key: str) -> str:
    """Its directory's: a key may hold anything."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
