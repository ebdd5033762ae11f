"""Starts unpacking workers (unpack.py), feeds them and reads their results. No worker outlives the block that started it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from agent.droplets.archive import ArchiveError, Bounds
from wsh.vcap import VCAP_ID

REPLY_BYTES = 1 << 16
#: How long a worker may not respond. The worker limits its own processor time; this is for a disk or kernel that hangs.
PATIENCE_S = 300.0


class JailError(RuntimeError):
    """The jail could not be set up, or the worker ended without a result or hung. The host is at fault, not the archive."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The size of an unpacked tree. ``files`` counts inodes; ``bytes`` counts contents."""

    files: int
    bytes: int


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield
    except TimeoutError:
        raise JailError(f"the unpacking worker has not responded for {PATIENCE_S:.0f} s") from None


class Feeding:
    """A running worker that receives its archive piece by piece."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def feed(self, data: bytes) -> bool:
        """Sends the next piece; waits while the worker is behind. False: the worker has ended early, and `finish` raises the cause.

        Raises JailError if the worker hangs.
        """
        stdin = self._process.stdin
        assert stdin is not None
        if stdin.is_closing():
            return False
        try:
            async with _patience():
                stdin.write(data)
                await stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    async def finish(self) -> Unpacked:
        """Ends the archive and returns the result. Raises ArchiveError if the archive was refused, JailError if the worker failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.close()
        async with _patience():
            return _result(await stdout.read(REPLY_BYTES), await self._process.wait())

    async def abort(self) -> None:
        """Kills the worker if it still runs, and waits for its end. Idempotent."""
        if self._process.returncode is None:
            self._process.kill()
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the worker did not read everything
            await stdin.wait_closed()
        await self._process.wait()


def _result(line: bytes, status: int) -> Unpacked:
    try:
        reply = json.loads(line)
    except ValueError:
        raise JailError(f"the unpacking worker ended with status {status} and without a result") from None
    if "error" in reply:
        raise JailError(reply["error"]) if reply.get("jail") else ArchiveError(reply["error"])
    return Unpacked(reply["files"], reply["bytes"])


class Unpacker:
    """``low_water_bytes``: the free disk below which a worker refuses to go on."""

    def __init__(self, *, low_water_bytes: int) -> None:
        self._low_water_bytes = low_water_bytes

    async def _start(self, kind: str, target: Path, bounds: Bounds, stdin: int) -> asyncio.subprocess.Process:
        bounds = replace(bounds, low_water_bytes=self._low_water_bytes)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-m",
            "agent.droplets.unpack",
            kind,
            str(target),
            json.dumps(asdict(bounds)),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            env={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
            cwd="/",
        )

    def make_root(self, target: Path) -> None:
        """Makes the root directory of a tree. It belongs to vcap's plain id; the archive cannot change its mode. Raises OSError."""
        target.mkdir(mode=0o755)
        os.chown(target, VCAP_ID, VCAP_ID)

    @asynccontextmanager
    async def feeding_tar(self, target: Path, bounds: Bounds) -> AsyncIterator[Feeding]:
        """Starts a worker that unpacks a tar (gzip or plain) into ``target``, which must not exist. It is ended with the block."""
        self.make_root(target)
        feeding = Feeding(await self._start("tar", target, bounds, asyncio.subprocess.PIPE))
        try:
            yield feeding
        finally:
            await feeding.abort()

    async def unpack_zip(self, archive: Path, target: Path, bounds: Bounds) -> Unpacked:
        """Unpacks a zip into ``target``, which must not exist. Raises ArchiveError, JailError or OSError."""
        self.make_root(target)
        fd = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
        try:
            process = await self._start("zip", target, bounds, fd)
        finally:
            os.close(fd)
        try:
            assert process.stdout is not None
            async with _patience():
                return _result(await process.stdout.read(REPLY_BYTES), await process.wait())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
