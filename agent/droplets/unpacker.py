"""The agent's end of a worker (unpack.py): starts it, feeds it, reads its result."""

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
#: Without a sign of the worker. It bounds its own processor time; this is for a disk or a kernel that does not answer.
PATIENCE_S = 300.0


class JailError(RuntimeError):
    """The worker could not enter its jail, or ended without a result. The cause is the host, not the archive."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    files: int
    bytes: int


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield
    except TimeoutError:
        raise JailError(f"the unpacking worker gave no sign for {PATIENCE_S:.0f} s") from None


class Feeding:
    """A worker that receives its archive piece by piece."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def feed(self, data: bytes) -> bool:
        """Sends a piece, and waits while the worker is behind. False: the worker has given up, and `finish` raises the cause.
        JailError: it makes no progress."""
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
        """Ends the archive. ArchiveError: it was refused. JailError: the worker failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.close()
        async with _patience():
            return _result(await stdout.read(REPLY_BYTES), await self._process.wait())

    async def abort(self) -> None:
        """Kills the worker. Idempotent."""
        if self._process.returncode is None:
            self._process.kill()
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what the worker did not read
            await stdin.wait_closed()
        await self._process.wait()


def _result(line: bytes, status: int) -> Unpacked:
    try:
        reply = json.loads(line)
    except ValueError:
        raise JailError(f"the unpacking worker ended with {status} and gave no result") from None
    if "error" in reply:
        raise JailError(reply["error"]) if reply.get("jail") else ArchiveError(reply["error"])
    return Unpacked(reply["files"], reply["bytes"])


class Unpacker:
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
        """Makes the directory of a tree: it belongs to vcap's number, and its mode is one that no archive can change."""
        target.mkdir(mode=0o755)
        os.chown(target, VCAP_ID, VCAP_ID)

    @asynccontextmanager
    async def feeding_tar(self, target: Path, bounds: Bounds) -> AsyncIterator[Feeding]:
        """A worker that unpacks a tar (gzip or plain) into ``target``. It has ended when the block is left, in every case."""
        self.make_root(target)
        feeding = Feeding(await self._start("tar", target, bounds, asyncio.subprocess.PIPE))
        try:
            yield feeding
        finally:
            await feeding.abort()

    async def unpack_zip(self, archive: Path, target: Path, bounds: Bounds) -> Unpacked:
        """Unpacks a zip into ``target``. ArchiveError, JailError."""
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
