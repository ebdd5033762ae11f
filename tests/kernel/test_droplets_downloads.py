"""Downloads over real HTTP: each failure gives the error text of the original DEA."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from droplets_kit import (
    DATA,
    MIB,
    STALL_S,
    WAIT_S,
    Handler,
    Peer,
    answer,
    download,
    hang_up,
    never_answer,
    peer,
    sha1,
    until,
    with_credentials,
)

from agent.droplets.transfer import TransferError, Transfers

pytestmark = pytest.mark.kernel


@pytest_asyncio.fixture
async def controller() -> AsyncIterator[Peer]:
    async with peer() as found:
        yield found


@pytest_asyncio.fixture
async def transfers() -> AsyncIterator[Transfers]:
    found = Transfers(4, stall_s=STALL_S, poll_period_s=0.01, poll_limit_s=1.0)
    yield found
    await found.close()


async def test_a_download_is_hashed_and_stored(
    transfers: Transfers, controller: Peer, tmp_path: Path
) -> None:
    """Every byte, in order; nobody on the way may pack it for the journey."""
    digest, url = controller.serve(DATA)

    got = await transfers.download_file(url, tmp_path / "file", limit_bytes=len(DATA))

    assert (got.sha1, got.bytes) == (digest, len(DATA))
    assert (tmp_path / "file").read_bytes() == DATA
    assert controller.requests[0].headers["Accept-Encoding"] == "identity"


async def test_what_is_packed_all_the_same_stays_packed(transfers: Transfers, controller: Peer) -> None:
    """A droplet is a gzip file: a server that calls that an encoding does not make it another file."""

    async def encoded(_: web.Request) -> web.StreamResponse:
        return web.Response(body=DATA, headers={"Content-Encoding": "gzip"})

    got = await download(transfers, controller.handle("/d", encoded))

    assert got == DATA


async def stall(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
    await response.prepare(request)
    await response.write(DATA[:1000])
    await asyncio.sleep(WAIT_S)
    return response


async def break_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
    await response.prepare(request)
    await response.write(DATA[:1000])
    assert request.transport is not None
    request.transport.close()
    return response


async def redirect(_: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


async def too_much(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    for _ in range(20):
        await response.write(bytes(100_000))
    return response


async def declared_too_much(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(1 << 40)})
    await response.prepare(request)
    await asyncio.sleep(WAIT_S)
    return response


async def trickle(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.02)
    return response


async def test_a_trickle_is_an_end_as_a_stall_is(
    transfers: Transfers, controller: Peer, tmp_path: Path
) -> None:
    """A byte every moment would keep a slot for days."""
    with pytest.raises(TransferError, match=r"bytes in 2 s, less than 10240 a second"):
        await transfers.download_file(
            controller.handle("/d", trickle), tmp_path / "file", limit_bytes=len(DATA)
        )
    assert not (tmp_path / "file").exists()


async def test_our_own_slowness_is_no_trickle(controller: Peer) -> None:
    """What we do not take cannot come."""
    digest, url = controller.serve(DATA)
    hurried = Transfers(1, stall_s=0.5, min_rate_bytes_per_s=len(DATA))

    async def slow(piece: bytes) -> None:
        await asyncio.sleep(2)  # a thousand times what the download takes

    try:
        assert (await hurried.download(url, slow, limit_bytes=len(DATA))).sha1 == digest
    finally:
        await hurried.close()


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (answer(404), "Error downloading: HTTP status: 404"),
        (answer(500), "Error downloading: HTTP status: 500"),
        (answer(206, DATA), "Error downloading: HTTP status: 206"),
        (redirect, "Error downloading: HTTP status: 302"),
        (stall, "Error downloading: no data for 2 s"),
        (never_answer, "Error downloading: no data for 2 s"),
        (break_off, "Error downloading: Response status: unknown, Error: ClientPayloadError"),
        (too_much, "Error downloading: more than 1048576 bytes"),
        (declared_too_much, "Error downloading: more than 1048576 bytes"),
    ],
)
async def test_a_download_that_fails(
    handler: Handler, words: str, transfers: Transfers, controller: Peer, tmp_path: Path
) -> None:
    """Says what the DEA said, once, without a second try; no file is left, and credentials stand in no word of it."""
    url = with_credentials(controller.handle("/d", handler))

    with pytest.raises(TransferError) as failed:
        await transfers.download_file(url, tmp_path / "file", limit_bytes=MIB)

    assert str(failed.value) == words
    assert not (tmp_path / "file").exists()
    assert controller.count("/d") == len(controller.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "droplet",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://u:s3cret@h/d",
        "http://",
        "http://u:s3cret@h:99999999/d",
        "http://u:s3cret@[::1/d",
        "http://u:s3cret@\N{FULLWIDTH SOLIDUS}h/d",
        "http://u%3As3cret@h/d",
    ],
)
async def test_what_is_no_address(url: str, transfers: Transfers, tmp_path: Path) -> None:
    """Said without quoting it: it may hold a password."""
    with pytest.raises(TransferError, match=r"^Error downloading: expected an http or https URL$"):
        await transfers.download_file(url, tmp_path / "file", limit_bytes=MIB)


async def test_nobody_listens(transfers: Transfers) -> None:
    """With the system's own word for it."""
    with pytest.raises(TransferError) as failed:
        await download(transfers, "http://u:s3cret@127.0.0.1:1/d")

    assert str(failed.value) == (
        "Error downloading: Response status: unknown, Error: ClientConnectorError (Connection refused)"
    )


async def test_a_server_that_hangs_up(transfers: Transfers, controller: Peer) -> None:
    """Before any word of an answer; whether the system notices a reset or only an end is chance."""
    url = with_credentials(controller.handle("/d", hang_up))
    words = r"Error: (ServerDisconnectedError|ClientOSError \(Connection reset by peer\)|ClientOSError \(Broken pipe\))$"

    with pytest.raises(TransferError, match=f"Error downloading: Response status: unknown, {words}"):
        await download(transfers, url)


async def test_credentials_go_as_basic_auth(transfers: Transfers, controller: Peer) -> None:
    """Decoded; letters of any alphabet as UTF-8."""
    _, url = controller.serve(DATA)

    await download(transfers, with_credentials(url))
    await download(transfers, with_credentials(url, "u:p%C3%A4%E2%82%AC"))
    await download(transfers, url)

    sent = [request.headers.get("Authorization") for request in controller.requests]
    assert sent == [
        "Basic " + base64.b64encode(b"staging-user:s3@cret").decode(),
        "Basic " + base64.b64encode("u:pä€".encode()).decode(),
        None,
    ]
    assert all("@" not in str(request.url) for request in controller.requests)


async def test_a_file_that_is_there_stays(transfers: Transfers, controller: Peer, tmp_path: Path) -> None:
    """It is not this download's to remove."""
    _, url = controller.serve(DATA)
    (tmp_path / "file").write_text("older")

    with pytest.raises(FileExistsError):
        await transfers.download_file(url, tmp_path / "file", limit_bytes=MIB)

    assert (tmp_path / "file").read_text() == "older"


async def test_a_cancelled_download_leaves_no_file_and_no_slot_taken(
    transfers: Transfers, controller: Peer, tmp_path: Path
) -> None:
    """As often as there are slots, and one more."""
    url = controller.handle("/d", stall)
    for number in range(5):
        task = asyncio.create_task(transfers.download_file(url, tmp_path / "file", limit_bytes=MIB))
        await until(lambda: controller.count("/d") == number + 1)  # noqa: B023  (awaited in its turn)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not (tmp_path / "file").exists()

    assert await download(transfers, controller.serve(DATA)[1]) == DATA


async def test_https_needs_a_certificate_that_the_host_trusts(
    controller: Peer, transfers: Transfers, tmp_path: Path
) -> None:
    """One signed by nobody is refused; one of a CA that OpenSSL was told of is taken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain, key = certificate(tmp_path)
    context.load_cert_chain(chain, key)
    runner = web.ServerRunner(web.Server(controller.answer))  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/d"
    controller.files["/d"] = DATA
    try:
        with pytest.raises(TransferError, match="Error: ClientConnectorCertificateError"):
            await download(transfers, url)
        trusting = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DOWNLOAD, url, env={"SSL_CERT_FILE": str(chain)}, stdout=subprocess.PIPE
        )
        said, _ = await trusting.communicate()
    finally:
        await runner.cleanup()
    assert said.decode().strip() == sha1(DATA)


#: A process of its own: which certificates a host trusts is decided as aiohttp is loaded.
DOWNLOAD = """
import asyncio, sys
from agent.droplets.transfer import Transfers
async def main():
    transfers = Transfers(1)
    print((await transfers.download(sys.argv[1], lambda piece: asyncio.sleep(0), limit_bytes=1 << 20)).sha1)
    await transfers.close()
asyncio.run(main())
"""


def certificate(directory: Path) -> tuple[Path, Path]:
    chain, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", chain, "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return chain, key
