"""Downloads, stores and removes the admin buildpacks of this host.

A staging message lists them, each with a key and the URL of a zip. A buildpack is unpacked once and stored under the hash of
its key, so a new version must have a new key. As in the original DEA, a buildpack is removed when the newest list lacks it
and no staging uses it. A message without a list removes nothing.
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
    """Stagings that need the same key share one download. A stored buildpack is used without waiting for other downloads."""

    def __init__(self, directory: Path, transfers: Transfers, layers: Layers, log: Log) -> None:
        self._dir = directory
        self._transfers = transfers
        self._layers = layers
        self._log = log
        # by directory name; a lock exists only while its download runs
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._used: Counter[str] = Counter()
        self._listed: frozenset[str] | None = None

    @contextlib.contextmanager
    def use(self, wanted: Sequence[AdminBuildpack] | None) -> Iterator[None]:
        """Keep the buildpacks of a message while the block runs. None: the message has no list."""
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
        """Remove unlisted, unused buildpacks and partial downloads of a former agent. A disk error is logged, and fails no
        staging."""
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
        """The buildpacks of the message, in its order. StagingFailed: one cannot be downloaded, unpacked or stored."""
        found = []
        for one in wanted:
            if not is_url(one.url):
                continue  # as in the original DEA
            path = self._dir / _name(one.key)
            if not path.exists():
                lock = self._locks.setdefault(path.name, asyncio.Lock())
                async with lock:  # one lock a buildpack, so that a slow download delays no other
                    if not path.exists():
                        await self._fetch_one(one, path)
            found.append(Buildpack(one.key, one.key, path, mapped=True))
        return tuple(found)

    async def _fetch_one(self, one: AdminBuildpack, path: Path) -> None:
        archive, new = path.with_suffix(".zip"), path.with_suffix(".new")
        archive.unlink(missing_ok=True)
        self._layers.throw_away(new)  # a killed agent may have left one
        try:
            await self._download(one, archive)
            await self._layers.import_zip(archive, new, Bounds(total_bytes=BUILDPACK_BYTES))
            new.rename(path)
        except TransferError as e:
            raise StagingFailed(
                "Error staging: buildpack cannot be fetched", "StagingError", f"{one.key}: {e}"
            ) from e
        except ArchiveError as e:
            raise StagingFailed(
                "Error staging: buildpack archive refused", "StagingError", f"{one.key}: {e}"
            ) from e
        except (JailError, OSError) as e:
            raise StagingFailed(
                "Error staging: buildpack cannot be stored", "StagingError", f"{one.key}: {e}"
            ) from e
        finally:
            archive.unlink(missing_ok=True)

    async def _download(self, one: AdminBuildpack, archive: Path) -> None:
        """Retries at once: behind a load balancer, another Cloud Controller may answer. TransferError: every attempt failed."""
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(TransferError):
                await self._transfers.download_file(one.url, archive, limit_bytes=BUILDPACK_BYTES)
                return
        await self._transfers.download_file(one.url, archive, limit_bytes=BUILDPACK_BYTES)


def _name(key: str) -> str:
    """The name of a buildpack's directory. It is a hash, since a key may contain any character."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
