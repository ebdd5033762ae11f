"""Droplets and packages over HTTP, as the Cloud Controller serves and takes them (dea-bus.md 2.3, 3.6).

Credentials travel as basic auth and stand in no message. A stall is an end: downloads by the socket's read time-out,
uploads by watching the bytes that were taken.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

CHUNK = 1 << 20
STALL_S = 30.0
POLL_PERIOD_S = 1.0
POLL_LIMIT_S = 300.0
Sink = Callable[[bytes], Awaitable[None]]


class TransferError(RuntimeError):
    """The words of dea-bus.md 2.3 and 3.6; without credentials."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    sha1: str
    bytes: int


def _split(url: str) -> tuple[URL, aiohttp.BasicAuth | None]:
    try:
        parsed = URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError("expected http or https")
        auth = None
        if parsed.user is not None:
            auth = aiohttp.BasicAuth(parsed.user, parsed.password or "", "utf-8")
    except (ValueError, TypeError) as e:
        raise TransferError(f"Error downloading: not a URL ({e})") from None
    return parsed.with_user(None), auth


class Transfers:
    """``concurrent``: how many at once, both ways together."""

    def __init__(self, concurrent: int, *, stall_s: float = STALL_S) -> None:
        self._slots = asyncio.Semaphore(concurrent)
        self._stall_s = stall_s
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._stall_s, sock_read=self._stall_s)
            self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def download(self, url: str, sink: Sink, *, limit_bytes: int) -> Downloaded:
        """Each piece goes to ``sink`` and into the checksum. TransferError."""
        where, auth = _split(url)
        digest, size = hashlib.sha1(usedforsecurity=False), 0
        try:
            async with (
                self._slots,
                self._open().get(where, auth=auth, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise TransferError(f"Error downloading: HTTP status: {response.status}")
                async for piece in response.content.iter_chunked(CHUNK):
                    size += len(piece)
                    if size > limit_bytes:
                        raise TransferError(f"Error downloading: more than {limit_bytes} bytes")
                    digest.update(piece)
                    await sink(piece)
        except TimeoutError:
            raise TransferError(f"Error downloading: nothing came for {self._stall_s:.0f} s") from None
        except aiohttp.ClientError as e:
            raise TransferError(f"Error downloading: Response status: unknown, Error: {_reason(e)}") from None
        return Downloaded(digest.hexdigest(), size)

    async def download_file(self, url: str, path: Path, *, limit_bytes: int) -> Downloaded:
        """Into a file that must not exist; on an error it does not."""
        try:
            with path.open("xb") as file:

                async def sink(piece: bytes) -> None:
                    await asyncio.to_thread(file.write, piece)

                return await self.download(url, sink, limit_bytes=limit_bytes)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    async def upload(self, url: str, path: Path, filename: str) -> None:
        """POST as the Cloud Controller takes it, then poll its job until that is finished. TransferError."""
        where, auth = _split(url)
        where = where.update_query({"async": "true"})
        async with self._slots:
            text = await self._post(where, auth, path, filename)
            if "url" not in text:
                return
            try:
                job = json.loads(text)
                poll = str(job["metadata"]["url"])
                status = str(job["entity"]["status"])
            except (ValueError, KeyError, TypeError):
                raise TransferError("Error uploading: (invalid json)") from None
            await self._poll(poll, auth, status)

    async def _post(self, where: URL, auth: aiohttp.BasicAuth | None, path: Path, filename: str) -> str:
        seen = _Progress()
        form = aiohttp.FormData()
        form.add_field(
            "upload[droplet]",
            _pieces(path, seen),
            filename=filename,
            content_type="application/octet-stream",
        )

        async def post() -> tuple[int, str]:
            async with self._open().post(where, data=form, auth=auth, allow_redirects=False) as response:
                return response.status, await response.text(errors="replace")

        work = asyncio.create_task(post(), name="upload")
        try:
            # sock_read does not see an upload that stalls
            while not work.done():
                await asyncio.wait({work}, timeout=1.0)
                if not work.done() and time.monotonic() - seen.at > 2 * self._stall_s:
                    raise TransferError("Error uploading: (Upload failed - status 0; error: stalled)")
            status, text = work.result()
        except (aiohttp.ClientError, TimeoutError) as e:
            raise TransferError(f"Error uploading: (Upload failed - status 0; error: {_reason(e)})") from None
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        if status >= 300:
            raise TransferError(f"Error uploading: (Upload failed - status {status})")
        return text

    async def _poll(self, url: str, auth: aiohttp.BasicAuth | None, status: str) -> None:
        where, own = _split(url)
        deadline = time.monotonic() + POLL_LIMIT_S
        while status != "finished":
            if status == "failed":
                raise TransferError("Error uploading: (Staging upload failed.)")
            if time.monotonic() > deadline:
                raise TransferError("Error uploading: (Job took too long)")
            status = await self._status(where, own or auth)
            if status not in ("finished", "failed"):
                await asyncio.sleep(POLL_PERIOD_S)

    async def _status(self, where: URL, auth: aiohttp.BasicAuth | None) -> str:
        try:
            async with self._open().get(where, auth=auth, allow_redirects=False) as response:
                if response.status >= 300:
                    raise TransferError(f"Error uploading: (Polling failed - status {response.status})")
                answer: Any = json.loads(await response.text())
                return str(answer["entity"]["status"])
        except (ValueError, KeyError, TypeError):
            raise TransferError("Error uploading: (polling invalid json)") from None
        except (aiohttp.ClientError, TimeoutError) as e:
            raise TransferError(f"Error uploading: (Polling failed - {_reason(e)})") from None


class _Progress:
    def __init__(self) -> None:
        self.at = time.monotonic()


async def _pieces(path: Path, seen: _Progress) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, CHUNK):
            seen.at = time.monotonic()
            yield piece
    seen.at = time.monotonic()


def _reason(error: BaseException) -> str:
    """The kind and the system's own words; aiohttp's texts may hold the URL."""
    cause = getattr(error, "os_error", None)
    return f"{type(error).__name__}{f' ({cause.strerror})' if isinstance(cause, OSError) and cause.strerror else ''}"
