"""Downloads and uploads of droplets and packages, as the Cloud Controller expects them (docs/protocol.md, "Droplets over HTTP").

Invariant: no error text contains credentials or a URL, since the texts are published. Credentials in a URL are sent as basic auth.

A stalled transfer fails: a download by the read timeout of the socket, an upload when its file has not been read for too long. A
download also fails if its average rate is too low, since a server that sends a byte now and then never reaches the timeout.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from agent.droplets.slots import FairSlots
from wsh.units import MIB

CHUNK = MIB
ANSWER_BYTES = MIB
STALL_S = 30.0
MIN_RATE_BYTES_PER_S = 10 << 10
POLL_PERIOD_S = 1.0
POLL_LIMIT_S = 300.0
Sink = Callable[[bytes], Awaitable[Any]]


class TransferError(RuntimeError):
    """A transfer failed. The text is published. It has the wording of the DEA and no credentials (docs/protocol.md, "Droplets over
    HTTP")."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    sha1: str
    bytes: int


class _JobAddress(msgspec.Struct, frozen=True):
    url: str


class _Accepted(msgspec.Struct, frozen=True):
    """The reply to an upload that the Cloud Controller continues in a job; ``metadata.url`` is the job's URL."""

    metadata: _JobAddress


class _JobState(msgspec.Struct, frozen=True):
    status: str


class _Polled(msgspec.Struct, frozen=True):
    entity: _JobState


#: What decoding can raise: msgspec's errors, ValueError for bytes that are not UTF-8, RecursionError for deep nesting.
_UNDECODABLE = (msgspec.MsgspecError, ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class _Address:
    """A URL without its credentials, and the credentials as a header."""

    url: URL
    headers: dict[str, str]


def _address(url: str, doing: str) -> _Address:
    try:
        parsed = URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError
        headers = {}
        if parsed.user is not None:
            headers["Authorization"] = aiohttp.encode_basic_auth(parsed.user, parsed.password or "", "utf-8")
        return _Address(parsed.with_user(None), headers)
    except (ValueError, TypeError):  # their texts would quote the credentials
        raise TransferError(f"Error {doing}: expected an http or https URL") from None


class _WatchedFile(io.FileIO):
    """A file that records when it was last read (``read_at``, monotonic seconds)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read_at = time.monotonic()

    def readinto(self, buffer: Any) -> int | None:
        self.read_at = time.monotonic()
        return super().readinto(buffer)


class Transfers:
    """``concurrent``: the number of downloads at once, and likewise of uploads. ``stall_s``: a transfer fails after this time without
    a byte. ``min_rate_bytes_per_s``: the average rate that a download must have once it has waited ``stall_s`` for data; time in
    which the agent itself does not read is not counted. ``poll_period_s``, ``poll_limit_s``: for the job after an upload."""

    def __init__(
        self,
        concurrent: int,
        *,
        stall_s: float = STALL_S,
        min_rate_bytes_per_s: float = MIN_RATE_BYTES_PER_S,
        poll_period_s: float = POLL_PERIOD_S,
        poll_limit_s: float = POLL_LIMIT_S,
    ) -> None:
        self._downloads = FairSlots(concurrent)
        self._uploads = asyncio.Semaphore(concurrent)
        self._stall_s = stall_s
        self._min_rate = min_rate_bytes_per_s
        self._poll_period_s = poll_period_s
        self._poll_limit_s = poll_limit_s
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._stall_s, sock_read=self._stall_s)
            self._session = aiohttp.ClientSession(
                timeout=timeout,
                # the checksum is that of the stored file, not of a form that a proxy has compressed
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Waits for a download slot and holds it within the block. ``owner``: the app that downloads, see `FairSlots`."""
        async with self._downloads.taken(owner):
            yield

    async def download(self, url: str, sink: Sink, *, limit_bytes: int, owner: str = "") -> Downloaded:
        """Waits for a slot, then does `download_now`."""
        async with self.turn(owner):
            return await self.download_now(url, sink, limit_bytes=limit_bytes)

    async def download_now(self, url: str, sink: Sink, *, limit_bytes: int) -> Downloaded:
        """Downloads within a slot that the caller holds (`turn`). Each piece is passed to ``sink`` and hashed.

        Raises TransferError, and what ``sink`` raises.
        """
        where = _address(url, "downloading")
        try:
            async with self._response(where) as response:
                if response.status != 200:
                    raise TransferError(f"Error downloading: HTTP status: {response.status}")
                if (response.content_length or 0) > limit_bytes:
                    raise TransferError(f"Error downloading: more than {limit_bytes} bytes")
                return await self._take(response.content, sink, limit_bytes)
        except TimeoutError:
            raise TransferError(f"Error downloading: no data for {self._stall_s:.0f} s") from None
        except aiohttp.ClientError as e:
            raise TransferError(f"Error downloading: Response status: unknown, Error: {_reason(e)}") from None

    @asynccontextmanager
    async def _response(self, where: _Address) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response, once its head is there. Raises TimeoutError if the head is not complete in time, even if bytes keep coming."""
        async with asyncio.timeout(2 * self._stall_s):
            response = await self._open().get(where.url, headers=where.headers, allow_redirects=False)
        async with response:
            yield response

    async def _take(self, content: aiohttp.StreamReader, sink: Sink, limit_bytes: int) -> Downloaded:
        digest, size, waited_s = hashlib.sha1(usedforsecurity=False), 0, 0.0
        pieces = content.iter_chunked(CHUNK)
        while True:
            asked_s = time.monotonic()
            piece = await anext(pieces, b"")
            waited_s += time.monotonic() - asked_s
            if not piece:
                return Downloaded(digest.hexdigest(), size)
            size += len(piece)
            if size > limit_bytes:
                raise TransferError(f"Error downloading: more than {limit_bytes} bytes")
            if waited_s > self._stall_s and size < waited_s * self._min_rate:
                raise TransferError(
                    f"Error downloading: {size} bytes in {waited_s:.0f} s, less than {self._min_rate:.0f} a second"
                )
            digest.update(piece)
            await sink(piece)

    async def download_file(self, url: str, path: Path, *, limit_bytes: int, owner: str = "") -> Downloaded:
        """Downloads into a file that must not exist. After an error there is no file. Raises TransferError or OSError."""
        file = path.open("xb")
        try:
            with file:

                async def sink(piece: bytes) -> None:
                    await asyncio.to_thread(file.write, piece)

                return await self.download(url, sink, limit_bytes=limit_bytes, owner=owner)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    async def upload(self, url: str, path: Path, filename: str) -> None:
        """Posts a file to the Cloud Controller, then polls the job that stores it until the job is finished.

        Raises TransferError, or OSError if the file cannot be read.
        """
        where = _address(url, "uploading")
        async with self._uploads:
            answer = await self._post(where, path, filename)
        if b"url" not in answer:
            return
        try:
            job = msgspec.json.decode(answer, type=_Accepted).metadata.url
        except _UNDECODABLE:
            raise TransferError("Error uploading: (invalid json)") from None
        await self._poll(_job_address(job, where))

    async def _post(self, where: _Address, path: Path, filename: str) -> bytes:
        watched = _WatchedFile(path)
        with io.BufferedReader(watched) as file:
            form = aiohttp.FormData()
            form.add_field(
                "upload[droplet]", file, filename=filename, content_type="application/octet-stream"
            )
            work = asyncio.create_task(self._answer_to(where, form), name="upload")
            try:
                # aiohttp applies sock_read only after everything has been sent
                while not work.done():
                    left_s = watched.read_at + 2 * self._stall_s - time.monotonic()
                    if left_s <= 0:
                        raise TransferError("Error uploading: (Upload failed - status 0; error: stalled)")
                    await asyncio.wait({work}, timeout=left_s)
                status, answer = work.result()
            except (aiohttp.ClientError, TimeoutError) as e:
                raise TransferError(
                    f"Error uploading: (Upload failed - status 0; error: {_reason(e)})"
                ) from None
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        if status >= 300:
            raise TransferError(f"Error uploading: (Upload failed - status {status})")
        return answer

    async def _answer_to(self, where: _Address, form: aiohttp.FormData) -> tuple[int, bytes]:
        url = where.url.update_query({"async": "true"})
        async with self._open().post(
            url, data=form, headers=where.headers, allow_redirects=False
        ) as response:
            return response.status, await _body(response)

    async def _poll(self, where: _Address) -> None:
        deadline = time.monotonic() + self._poll_limit_s
        while (status := await self._status(where)) != "finished":
            if status == "failed":
                raise TransferError("Error uploading: (Staging upload failed.)")
            if time.monotonic() + self._poll_period_s > deadline:
                raise TransferError("Error uploading: (Job took too long)")
            await asyncio.sleep(self._poll_period_s)

    async def _status(self, where: _Address) -> str | None:
        """The status of the upload's job; None: no reply in time, so poll again."""
        try:
            async with self._open().get(where.url, headers=where.headers, allow_redirects=False) as response:
                if response.status >= 300:
                    raise TransferError(f"Error uploading: (Polling failed - status {response.status})")
                return msgspec.json.decode(await _body(response), type=_Polled).entity.status
        except TimeoutError:
            return None
        except aiohttp.ClientError as e:
            if isinstance(e, OSError) and e.errno == errno.ETIMEDOUT:
                return None
            raise TransferError(
                f"Error uploading: (Polling failed - status 0; error: {_reason(e)})"
            ) from None
        except _UNDECODABLE:
            raise TransferError("Error uploading: (polling invalid json)") from None


def _job_address(url: str, upload: _Address) -> _Address:
    """The address of the upload's job. It gets the upload's credentials only if it has the same origin and none of its own."""
    found = _address(url, "uploading")
    if not found.headers and found.url.origin() == upload.url.origin():
        return _Address(found.url, upload.headers)
    return found


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The body of a reply. Reading stops soon after `ANSWER_BYTES`, so a larger body is cut."""
    body = b""
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > ANSWER_BYTES:
            break
    return body


def _reason(error: BaseException) -> str:
    """The class of the error and the system's text for its errno. aiohttp's own text is omitted, since it may contain the URL."""
    cause = getattr(error, "os_error", error)
    words = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else ""
    return f"{type(error).__name__}{f' ({words})' if words else ''}"
