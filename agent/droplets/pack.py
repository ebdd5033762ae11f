"""A tar stream to a droplet, its checksum and its layer, in one pass.

Own gzip blocks of 512 KiB in two threads: plain gzip to every reader, the same bytes for any number of threads and any
chunking, six times as fast as gzip -6 at 2 % more size (archives.md, Packing). The tar itself is made inside the container: nobody
here walks a hostile tree.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from zlib_ng import zlib_ng

from agent.droplets.archive import Bounds
from agent.droplets.unpacker import Unpacked, Unpacker

BLOCK = 512 << 10
THREADS = 2
LEVEL = 5
WINDOW = 32 << 10
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_LAST_BLOCK = b"\x03\x00"


@dataclass(frozen=True, slots=True)
class Packed:
    """``layer``: what the tee has made of it, if one was asked for."""

    sha1: str
    bytes: int
    tar_bytes: int
    layer: Unpacked | None


def compress_block(block: bytes, previous: bytes) -> bytes:
    """One block of a deflate stream, ended on a byte; ``previous`` is the text before it. Pure."""
    dictionary = previous[-WINDOW:]
    if dictionary:
        compressor = zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, -15, 9, 0, dictionary)
    else:
        compressor = zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, -15, 9, 0)
    data: bytes = compressor.compress(block) + compressor.flush(zlib_ng.Z_SYNC_FLUSH)
    return data


async def _blocks(fd: int) -> AsyncIterator[bytes]:
    """The stream in blocks of exactly BLOCK bytes, the last one shorter."""
    loop = asyncio.get_running_loop()

    def read() -> bytes:
        parts, size = [], 0
        while size < BLOCK and (part := os.read(fd, BLOCK - size)):
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    while block := await loop.run_in_executor(None, read):
        yield block
        if len(block) < BLOCK:
            return


async def pack(
    read_fd: int,
    out_path: Path,
    *,
    unpacker: Unpacker | None = None,
    layer_dir: Path | None = None,
    bounds: Bounds,
) -> Packed:
    """Until the stream's end. ArchiveError: the tee refused it; OSError: the disk did. On an error no file is left."""
    try:
        with out_path.open("xb") as out, ThreadPoolExecutor(THREADS, thread_name_prefix="pack") as pool:
            async with AsyncExitStack() as held:
                feeding = None
                if unpacker is not None and layer_dir is not None:
                    feeding = await held.enter_async_context(unpacker.feeding_tar(layer_dir, bounds))
                writer = _Writer(out.fileno(), pool)
                async for block in _blocks(read_fd):
                    await writer.add(block)
                    if feeding is not None:
                        await feeding.feed(block)
                await writer.finish()
                layer = await feeding.finish() if feeding is not None else None
        return Packed(writer.sha1.hexdigest(), writer.written, writer.tar_bytes, layer)
    except BaseException:
        out_path.unlink(missing_ok=True)
        raise


class _Writer:
    """Blocks in, gzip out, in order; at most a few blocks under way."""

    def __init__(self, fd: int, pool: ThreadPoolExecutor) -> None:
        self._fd = fd
        self._pool = pool
        self._under_way: deque[asyncio.Future[bytes]] = deque()
        self._previous = b""
        self._crc = 0
        self.sha1 = hashlib.sha1(usedforsecurity=False)
        self.written = 0
        self.tar_bytes = 0
        self._put(_HEADER)

    async def add(self, block: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._under_way.append(loop.run_in_executor(self._pool, compress_block, block, self._previous))
        self._previous = block
        self._crc = zlib.crc32(block, self._crc)
        self.tar_bytes += len(block)
        while len(self._under_way) > 2 * THREADS:
            self._put(await self._under_way.popleft())

    async def finish(self) -> None:
        while self._under_way:
            self._put(await self._under_way.popleft())
        self._put(_LAST_BLOCK + struct.pack("<II", self._crc, self.tar_bytes & 0xFFFFFFFF))

    def _put(self, data: bytes) -> None:
        self.sha1.update(data)
        self.written += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
