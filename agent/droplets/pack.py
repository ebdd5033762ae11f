"""Packs a tar stream into a droplet, and makes its checksum and its layer in the same pass.

The tar stream is made inside the container, so the agent never walks a tree that an app can change. The bytes from the pipe are
limited, because a sparse file can become terabytes of zeros in a tar.

The stream is compressed in blocks of 512 KiB by two threads. The result is plain gzip for every reader, and its bytes depend neither
on the number of threads nor on how the pipe splits the stream. It is six times as fast as gzip -6, at 2 % more size
(docs/droplets.md, "Packing").
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

from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.unpacker import Unpacked, Unpacker

BLOCK = 512 << 10
THREADS = 2
LEVEL = 5
WINDOW = 32 << 10
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_LAST_BLOCK = b"\x03\x00"


@dataclass(frozen=True, slots=True)
class Packed:
    """``layer``: the layer that was unpacked from the same stream, if one was asked for."""

    sha1: str
    bytes: int
    tar_bytes: int
    layer: Unpacked | None


def compress_block(block: bytes, previous: bytes) -> bytes:
    """One block as part of a deflate stream that ends on a byte boundary. ``previous``: the uncompressed block before it. Pure."""
    dictionary = previous[-WINDOW:]
    if dictionary:
        compressor = zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, -15, 9, 0, dictionary)
    else:
        compressor = zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, -15, 9, 0)
    data: bytes = compressor.compress(block) + compressor.flush(zlib_ng.Z_SYNC_FLUSH)
    return data


async def _until_readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def _blocks(fd: int) -> AsyncIterator[bytes]:
    """The stream in blocks of exactly BLOCK bytes; the last one may be shorter.

    Reads on the event loop and not in a thread: a thread that waits in read(2) cannot be stopped when the caller closes the pipe,
    and would then read from another file that gets the same descriptor number.
    """
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            part = os.read(fd, BLOCK - size)
        except BlockingIOError:
            await _until_readable(fd)
            continue
        parts.append(part)
        size += len(part)
        if size == BLOCK or (size and not part):
            yield b"".join(parts)
            parts, size = [], 0
        if not part:
            return


async def pack(
    read_fd: int,
    out_path: Path,
    *,
    unpacker: Unpacker | None = None,
    layer_dir: Path | None = None,
    bounds: Bounds,
) -> Packed:
    """Packs the tar stream from a pipe, until its end, into a new file. With ``unpacker`` and ``layer_dir`` it is also unpacked.

    Raises ArchiveError if the stream exceeds ``bounds`` or cannot be unpacked, OSError if the file exists or cannot be written.
    After an error that it caused there is no file.
    """
    out = out_path.open("xb", buffering=0)
    try:
        # the threads end before the file is closed: else a thread could write to another file that got the descriptor number
        with out, _threads(1) as disk, _threads(THREADS) as pool:
            async with AsyncExitStack() as held:
                feeding = None
                if unpacker is not None and layer_dir is not None:
                    feeding = await held.enter_async_context(unpacker.feeding_tar(layer_dir, bounds))
                writer = _Writer(out.fileno(), disk, pool)
                async for block in _blocks(read_fd):
                    if writer.tar_bytes + len(block) > bounds.stream_bytes:
                        raise ArchiveError(f"more than {bounds.total_bytes} bytes")
                    await writer.add(block)
                    if feeding is not None and not await feeding.feed(block):
                        break  # `finish` raises the reason
                layer = await feeding.finish() if feeding is not None else None
                await writer.finish()
        return Packed(writer.sha1.hexdigest(), writer.written, writer.tar_bytes, layer)
    except BaseException:
        out_path.unlink(missing_ok=True)
        raise


def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="pack")


class _Writer:
    """Writes blocks as gzip, in order. Threads of ``pool`` compress; the one thread of ``disk`` hashes and writes. `add` waits while
    too many blocks are in progress, which bounds the memory.
    """

    def __init__(self, fd: int, disk: ThreadPoolExecutor, pool: ThreadPoolExecutor) -> None:
        self._fd = fd
        self._disk = disk
        self._pool = pool
        self._under_way: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        self._previous = b""
        self._crc = 0
        self.sha1 = hashlib.sha1(usedforsecurity=False)
        self.written = 0
        self.tar_bytes = 0
        self._put(_HEADER)

    async def add(self, block: bytes) -> None:
        loop = asyncio.get_running_loop()
        compressed = loop.run_in_executor(self._pool, compress_block, block, self._previous)
        self._under_way.append((block, compressed))
        self._previous = block
        self.tar_bytes += len(block)
        while len(self._under_way) > 2 * THREADS:
            await self._put_oldest()

    async def finish(self) -> None:
        while self._under_way:
            await self._put_oldest()
        self._put(_LAST_BLOCK + struct.pack("<II", self._crc, self.tar_bytes & 0xFFFFFFFF))

    async def _put_oldest(self) -> None:
        block, compressed = self._under_way.popleft()
        data = await compressed
        await asyncio.get_running_loop().run_in_executor(self._disk, self._put, data, block)

    def _put(self, data: bytes, block: bytes = b"") -> None:
        self._crc = zlib.crc32(block, self._crc)
        self.sha1.update(data)
        self.written += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
