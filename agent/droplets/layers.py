"""Layers: droplets that are unpacked once per host and shared read-only by all their instances.

    LAYERS/SHA1         the tree, owned by vcap's plain id
    LAYERS/SHA1.json    its record: size, boot id, whether it has been synced to the disk
    LAYERS/.new-*       a layer that is being made

Invariant: a layer is complete or absent. It is made under another name and renamed after its checksum has matched. It is never
changed afterwards, so any number of containers can share it. Each container maps the owner's id by an idmapped mount, so a
layer is never copied or chowned.

Files are not synced while a layer is made, since an fsync of each file took 7 s for a real app. Instead the record has the boot id of
the host, and is marked as synced once the whole file system has been synced in the background. After a crash of the host, an
unmarked layer of an earlier boot may have lost data. So it goes to the trash and is made again.

Making a layer is one task, however many starts wait for it. A start that is cancelled does not cancel the task for the others;
the last one does.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent.droplets import trash
from agent.droplets.archive import Bounds
from agent.droplets.transfer import Transfers
from agent.droplets.unpacker import Unpacked, Unpacker
from agent.logs import Log
from container import linux

_SHA1 = re.compile(r"[0-9a-f]{40}\Z")
#: A download may be larger than the limit of the tree by this much, for tar headers and padding.
_HEADER_ROOM_BYTES = 64 << 20


class LayerError(RuntimeError):
    """A layer cannot be made. The text is published as the cause."""


class LayerRecord(msgspec.Struct, frozen=True):
    """A layer's file `SHA1.json`. ``boot_id``: of the boot in which the layer was made."""

    bytes: int
    files: int
    boot_id: str
    synced: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    sha1: str
    path: Path
    bytes: int


def _sync_file_system(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        linux.sync_file_system(fd, str(path))
    finally:
        os.close(fd)


class Layers:
    """The layers of a host. Call `open` first and `close` last. ``trash_dir`` must be on the file system of ``layers_dir``."""

    def __init__(
        self, layers_dir: Path, trash_dir: Path, transfers: Transfers, unpacker: Unpacker, log: Log
    ) -> None:
        self._dir = layers_dir
        self._trash = trash_dir
        self._transfers = transfers
        self._unpacker = unpacker
        self._log = log
        self._known: dict[str, Layer] = {}
        self._making: dict[str, asyncio.Task[Layer]] = {}
        self._abandoned: set[asyncio.Task[Layer]] = set()
        self._users: Counter[str] = Counter()
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._background: set[asyncio.Task[None]] = set()
        self._emptying = asyncio.Lock()

    async def open(self) -> None:
        """Loads the layers that are complete. Everything else goes to the trash. Raises OSError."""
        for directory in (self._dir, self._trash):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        unsynced = {}
        for path in sorted(self._dir.iterdir()):
            if path.suffix == ".json":
                if not path.with_suffix("").is_dir():
                    path.unlink(missing_ok=True)  # may be gone already: its tree was thrown away in this loop
                continue
            record = self._read_record(path.name)
            if record is None or not (record.synced or record.boot_id == self._boot_id):
                self._throw_away(path.name)
            else:
                self._known[path.name] = Layer(path.name, path, record.bytes)
                if not record.synced:  # a former agent of this boot made it and ended before the sync
                    unsynced[path.name] = record
        if unsynced:
            self._in_background(self._sync(unsynced), "sync")
        self._in_background(self._empty_trash(), "trash")

    def _read_record(self, name: str) -> LayerRecord | None:
        if not _SHA1.match(name):
            return None
        try:
            return msgspec.json.decode((self._dir / f"{name}.json").read_bytes(), type=LayerRecord)
        except (OSError, msgspec.MsgspecError):
            return None

    def _throw_away(self, name: str) -> None:
        (self._dir / f"{name}.json").unlink(missing_ok=True)
        trash.throw_away(self._dir / name, self._trash)

    async def close(self) -> None:
        """Cancels all layers that are being made, and waits for the background work."""
        making = [*self._making.values(), *self._abandoned]
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)
        while self._background:  # the cancelled layers went to the trash, which is emptied in the background
            await asyncio.gather(*self._background, return_exceptions=True)

    def _in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.warning("layers_work_failed", work=task.get_name(), error=str(error))

    async def _empty_trash(self) -> None:
        async with self._emptying:  # two passes at once would remove each other's entries
            await asyncio.to_thread(trash.empty, self._trash)

    def known(self, sha1: str) -> Layer | None:
        return self._known.get(sha1)

    @contextmanager
    def use(self, sha1: str) -> Iterator[None]:
        """Within the block the layer is not evicted."""
        self._users[sha1] += 1
        try:
            yield
        finally:
            self._users[sha1] -= 1
            if not self._users[sha1]:
                del self._users[sha1]

    async def ensure(self, sha1: str, url: str | None, limit_bytes: int, owner: str = "") -> Layer:
        """The layer of a droplet. If it is missing, it is fetched and unpacked, once for all concurrent callers.

        ``owner``: the app, for fair download slots. ``limit_bytes``: of the unpacked tree. Raises LayerError, TransferError,
        ArchiveError, JailError or OSError.
        """
        if not _SHA1.match(sha1):
            raise LayerError(f"sha1: expected 40 hexadecimal digits, got {sha1[:50]!r}")
        if (found := self._known.get(sha1)) is not None:
            return found
        making = self._making.get(sha1)
        if making is None:
            if url is None:
                raise LayerError("executableUri: expected a URL, got null")
            making = asyncio.create_task(self._make(sha1, url, limit_bytes, owner), name=f"layer-{sha1[:8]}")
            self._making[sha1] = making
            making.add_done_callback(lambda task: self._made(sha1, task))
        with self.use(sha1):
            try:
                # a cancelled caller must not cancel the work of others; the last caller cancels it
                return await asyncio.shield(making)
            except asyncio.CancelledError:
                if self._users[sha1] <= 1:
                    self._abandon(sha1, making)
                raise

    def _abandon(self, sha1: str, making: asyncio.Task[Layer]) -> None:
        """Cancels a task. Later callers start a new one instead of waiting for the end of this one."""
        if self._making.get(sha1) is making:
            del self._making[sha1]
            self._abandoned.add(making)
        making.cancel()

    def _made(self, sha1: str, task: asyncio.Task[Layer]) -> None:
        self._abandoned.discard(task)
        if self._making.get(sha1) is task:
            del self._making[sha1]
        if not task.cancelled():
            task.exception()  # mark as retrieved: the callers, if any are left, get it too

    async def _make(self, sha1: str, url: str, limit_bytes: int, owner: str) -> Layer:
        new = self._new_path()
        bounds = Bounds(total_bytes=limit_bytes)
        try:
            # the worker process is started only when the download has a slot
            async with self._transfers.turn(owner), self._unpacker.feeding_tar(new, bounds) as feeding:
                got = await self._transfers.download_now(
                    url, feeding.feed, limit_bytes=limit_bytes + _HEADER_ROOM_BYTES
                )
                unpacked = await feeding.finish() if got.sha1 == sha1 else None
            if unpacked is None:
                raise LayerError(f"Error downloading: SHA1 mismatch (expected {sha1}, got {got.sha1})")
            return self._publish(new, sha1, unpacked)
        except BaseException:
            self.throw_away(new)
            raise

    def throw_away(self, path: Path) -> None:
        """Moves a file or tree of the layers' file system into the trash at once. It is removed in the background."""
        trash.throw_away(path, self._trash)
        self._in_background(self._empty_trash(), "trash")

    def _new_path(self) -> Path:
        return self._dir / f".new-{os.urandom(8).hex()}"

    def _publish(self, new: Path, sha1: str, unpacked: Unpacked) -> Layer:
        """Renames a new tree into place, unless the layer is known already. The record is written first, since `open` considers a tree
        without one incomplete."""
        if (found := self._known.get(sha1)) is not None:
            self.throw_away(new)
            return found
        layer = Layer(sha1, self._dir / sha1, unpacked.bytes)
        record = LayerRecord(unpacked.bytes, unpacked.files, self._boot_id)
        self._write_record(sha1, record)
        new.rename(layer.path)
        self._known[sha1] = layer
        self._in_background(self._sync({sha1: record}), f"sync-{sha1[:8]}")
        return layer

    def _write_record(self, sha1: str, record: LayerRecord) -> None:
        path = self._dir / f"{sha1}.json"
        beside = self._dir / f".new-{sha1}.json"
        beside.write_bytes(msgspec.json.encode(record))
        beside.rename(path)

    async def _sync(self, records: Mapping[str, LayerRecord]) -> None:
        """Syncs the file system, then marks the records. The mark itself is not synced: if it is lost, the layer is fetched again."""
        await asyncio.to_thread(_sync_file_system, self._dir)
        for sha1, record in records.items():
            if sha1 in self._known:
                self._write_record(sha1, msgspec.structs.replace(record, synced=True))

    async def adopt(self, tree: Path, sha1: str, size_bytes: int, files: int) -> Layer:
        """Makes a layer of a tree that staging unpacked from the same stream as its droplet (pack.py)."""
        return self._publish(tree, sha1, Unpacked(files, size_bytes))

    async def import_zip(self, archive: Path, target: Path, bounds: Bounds) -> Unpacked:
        """Unpacks an app package or a buildpack in the jail. ``target`` must not exist, and does not exist after an error.

        Raises ArchiveError, JailError or OSError.
        """
        try:
            return await self._unpacker.unpack_zip(archive, target, bounds)
        except BaseException:
            self.throw_away(target)
            raise

    async def sweep(self, keep: Collection[str]) -> tuple[str, ...]:
        """Moves all layers into the trash that are not in use, not in ``keep`` and not being made. Returns their checksums."""
        gone = tuple(
            sha1
            for sha1 in self._known
            if not self._users[sha1] and sha1 not in keep and sha1 not in self._making
        )
        for sha1 in gone:
            del self._known[sha1]
            self._throw_away(sha1)
        if gone:
            self._in_background(self._empty_trash(), "trash")
        return gone
