"""Downloads and uploads over real HTTP: the words of dea-bus.md 2.3 and 3.6 for everything that can go wrong."""

from __future__ import annotations

import asyncio
import base64
import resource
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from droplets_kit import MIB, STALL_S, WAIT_S, Handler, Peer, peer, sha1, until

from agent.droplets.transfer import TransferError, Transfers

pytestmark = pytest.mark.kernel

DATA = b"droplet" * 10_000
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest_asyncio.fixture
async def controller() -> AsyncIterator[Peer]:
    async with peer() as found:
        yield found


@pytest_asyncio.fixture
async def transfers() -> AsyncIterator[Transfers]:
    found = Transfers(4, stall_s=STALL_S, poll_period_s=0.01, poll_limit_s=1.0)
    yield found
    await found.close()


def with_credentials(url: str, credentials: str = "staging-user:s3%40cret") -> str:
    return url.replace("http://", f"http://{credentials}@")


# -- downloads -------------------------------------------------------------------------------------------------


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


async def download(transfers: Transfers, url: str, limit_bytes: int = MIB) -> bytes:
    found = bytearray()

    async def sink(piece: bytes) -> None:
        found.extend(piece)

    await transfers.download(url, sink, limit_bytes=limit_bytes)
    return bytes(found)


async def stall(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
    await response.prepare(request)
    await response.write(DATA[:1000])
    await asyncio.sleep(WAIT_S)
    return response


async def never_answer(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(WAIT_S)
    return web.Response()


async def break_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
    await response.prepare(request)
    await response.write(DATA[:1000])
    assert request.transport is not None
    request.transport.close()
    return response


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


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


def answer(status: int, body: bytes | str = b"") -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    return handler


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (answer(404), "Error downloading: HTTP status: 404"),
        (answer(500), "Error downloading: HTTP status: 500"),
        (answer(206, DATA), "Error downloading: HTTP status: 206"),
        (redirect, "Error downloading: HTTP status: 302"),
        (stall, "Error downloading: nothing came for 2 s"),
        (never_answer, "Error downloading: nothing came for 2 s"),
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
    with pytest.raises(TransferError, match=r"^Error downloading: not a URL of http or https$"):
        await transfers.download_file(url, tmp_path / "file", limit_bytes=MIB)


async def test_nobody_listens(transfers: Transfers) -> None:
    """With the system's own word for it."""
    with pytest.raises(TransferError) as failed:
        await download(transfers, "http://u:s3cret@127.0.0.1:1/d")

    assert str(failed.value) == (
        "Error downloading: Response status: unknown, Error: ClientConnectorError (Connection refused)"
    )


async def test_a_server_that_hangs_up(transfers: Transfers, controller: Peer, droplet: Path) -> None:
    """Before any word of an answer; whether the system notices a reset or only an end is chance."""
    url = with_credentials(controller.handle("/d", hang_up))
    words = r"Error: (ServerDisconnectedError|ClientOSError \(Connection reset by peer\)|ClientOSError \(Broken pipe\))$"

    with pytest.raises(TransferError, match=f"Error downloading: Response status: unknown, {words}"):
        await download(transfers, url)
    with pytest.raises(TransferError, match=r"Error uploading: \(Upload failed - status 0; error: "):
        await transfers.upload(url, droplet, "droplet.tgz")


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


# -- uploads ---------------------------------------------------------------------------------------------------


@pytest.fixture
def droplet(tmp_path: Path) -> Path:
    (tmp_path / "droplet").write_bytes(DATA)
    return tmp_path / "droplet"


class Store:
    """The Cloud Controller's end: takes an upload, answers, and is polled."""

    def __init__(self, controller: Peer, first: str | bytes, *polls: str | bytes | int) -> None:
        self.body = b""
        self.headers: dict[str, str] = {}
        self.query = ""
        self.polled: list[str | None] = []
        self._first = first if isinstance(first, bytes) else first.encode()
        self._polls = list(polls)
        self.url = controller.handle("/upload", self.take)
        controller.handle("/job", self.poll)

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.body, self.query, self.headers = (
            await request.read(),
            request.query_string,
            dict(request.headers),
        )
        return web.Response(body=self._first)

    async def poll(self, request: web.Request) -> web.StreamResponse:
        self.polled.append(request.headers.get("Authorization"))
        said = self._polls.pop(0) if len(self._polls) > 1 else self._polls[0]
        if isinstance(said, int):
            return web.Response(status=said)
        return web.Response(body=said)


def job_at(url: str) -> str:
    return f'{{"metadata": {{"guid": "g", "url": "{url}"}}, "entity": {{"guid": "g", "status": "queued"}}}}'


def state(status: str) -> str:
    return f'{{"metadata": {{"guid": "g"}}, "entity": {{"guid": "g", "status": "{status}"}}}}'


async def test_an_upload_is_the_form_that_the_cloud_controller_takes(
    transfers: Transfers, controller: Peer, droplet: Path
) -> None:
    """One part, named with its brackets as they are; its length is known before (nginx' upload module wants it)."""
    store = Store(controller, "")

    await transfers.upload(with_credentials(store.url + "?a=b"), droplet, "droplet.tgz")

    head, _, rest = store.body.partition(b"\r\n\r\n")
    assert b'Content-Disposition: form-data; name="upload[droplet]"; filename="droplet.tgz"' in head
    assert b"Content-Type: application/octet-stream" in head
    assert rest.startswith(DATA + b"\r\n--")
    assert store.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert store.headers["Content-Length"] == str(len(store.body))
    assert store.headers["Authorization"].startswith("Basic ")
    assert store.query == "a=b&async=true"
    assert store.polled == []


async def test_an_upload_is_polled_until_it_is_finished(
    transfers: Transfers, controller: Peer, droplet: Path
) -> None:
    """As long as it says anything but finished or failed; the upload's credentials go along to the same host."""
    store = Store(
        controller, job_at(f"{controller.base_url}/job"), state("queued"), state("?"), state("finished")
    )

    await transfers.upload(with_credentials(store.url), droplet, "droplet.tgz")

    assert store.polled == [store.headers["Authorization"]] * 3


async def test_a_job_elsewhere_gets_no_credentials_but_its_own(
    transfers: Transfers, controller: Peer, droplet: Path
) -> None:
    """Who answers an upload could have them sent anywhere otherwise."""
    elsewhere = controller.base_url.replace("127.0.0.1", "localhost")
    for url, sent in ((elsewhere, None), (with_credentials(elsewhere, "a:b"), "Basic YTpi")):
        store = Store(controller, job_at(f"{url}/job"), state("finished"))
        await transfers.upload(with_credentials(store.url), droplet, "droplet.tgz")
        assert store.polled == [sent]


@pytest.mark.parametrize(
    ("first", "polls", "words"),
    [
        (job_at("URL/job"), [state("failed")], "Error uploading: (Staging upload failed.)"),
        (job_at("URL/job"), [state("queued")], "Error uploading: (Job took too long)"),
        (job_at("URL/job"), [404], "Error uploading: (Polling failed - status 404)"),
        (job_at("URL/job"), [302], "Error uploading: (Polling failed - status 302)"),
        (job_at("URL/job"), ["no json"], "Error uploading: (polling invalid json)"),
        (job_at("URL/job"), ['{"entity": []}'], "Error uploading: (polling invalid json)"),
        (job_at("URL/job"), ["[" * 100_000], "Error uploading: (polling invalid json)"),
        (job_at("URL/job"), [b'{"entity": {"status": "\xff"}}'], "Error uploading: (polling invalid json)"),
        (job_at("URL/job"), [bytes(2 * MIB)], "Error uploading: (polling invalid json)"),
        ("a url", [], "Error uploading: (invalid json)"),
        ('{"url": 1}', [], "Error uploading: (invalid json)"),
        ('{"metadata": {"url": null}}', [], "Error uploading: (invalid json)"),
        ("url" + "[" * 100_000, [], "Error uploading: (invalid json)"),
        (b"url\xff", [], "Error uploading: (invalid json)"),
        (job_at("/job"), [], "Error uploading: not a URL of http or https"),
        (job_at("file:///etc/passwd"), [], "Error uploading: not a URL of http or https"),
    ],
)
async def test_an_upload_whose_job_goes_wrong(
    first: str | bytes,
    polls: list[str | bytes | int],
    words: str,
    transfers: Transfers,
    controller: Peer,
    droplet: Path,
) -> None:
    """Says what the DEA said."""
    if isinstance(first, str):
        first = first.replace("URL", controller.base_url)
    store = Store(controller, first, *polls)

    with pytest.raises(TransferError) as failed:
        await transfers.upload(store.url, droplet, "droplet.tgz")

    assert str(failed.value) == words


@pytest.mark.parametrize("name", ["upload.poll.finished.json", "upload.poll.failed.json"])
async def test_the_fixtures_of_a_poll(
    name: str, transfers: Transfers, controller: Peer, droplet: Path
) -> None:
    """A recorded answer to an upload, its address made ours, and both ends that it may come to."""
    accepted = (FIXTURES / "upload.async.response.json").read_text()
    accepted = accepted.replace("cc.service.cf.internal:9022", controller.base_url.removeprefix("http://"))
    store = Store(controller, accepted, (FIXTURES / name).read_text())
    controller.handle("/staging/jobs/5b8f6c1e-7d2a-4a9b-8c3d-1e0f9a8b7c6d", store.poll)
    upload = transfers.upload(store.url, droplet, "droplet.tgz")

    if "failed" in name:
        with pytest.raises(TransferError, match="Staging upload failed"):
            await upload
    else:
        await upload

    assert store.polled == ["Basic " + base64.b64encode(b"staging-user:s3cret").decode()]


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (answer(400), "Error uploading: (Upload failed - status 400)"),
        (answer(302), "Error uploading: (Upload failed - status 302)"),
        (never_answer, "Error uploading: (Upload failed - status 0; error: SocketTimeoutError)"),
    ],
)
async def test_an_upload_that_fails(
    handler: Handler, words: str, transfers: Transfers, controller: Peer, droplet: Path
) -> None:
    """Says what the DEA said, without credentials."""
    with pytest.raises(TransferError) as failed:
        await transfers.upload(with_credentials(controller.handle("/u", handler)), droplet, "droplet.tgz")

    assert str(failed.value) == words


async def test_a_poll_that_stalls_is_asked_again(
    transfers: Transfers, controller: Peer, droplet: Path
) -> None:
    """A time-out is the only error that is no answer (until the job took too long)."""
    calls = []

    async def poll(request: web.Request) -> web.StreamResponse:
        calls.append(request)
        if len(calls) == 1:
            await asyncio.sleep(WAIT_S)
        return web.Response(text=state("finished"))

    store = Store(controller, job_at(f"{controller.base_url}/slow"))
    controller.handle("/slow", poll)
    patient = Transfers(1, stall_s=0.2, poll_period_s=0.01, poll_limit_s=WAIT_S)

    await patient.upload(store.url, droplet, "droplet.tgz")

    await patient.close()
    assert len(calls) == 2


async def test_an_upload_that_stalls_is_noticed(
    transfers: Transfers, controller: Peer, tmp_path: Path
) -> None:
    """A peer that accepts and then reads no more; the socket's own time-out does not see that."""
    stuck: list[asyncio.StreamReader] = []
    over = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stuck.append(reader)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(64 * MIB)

    with pytest.raises(TransferError, match=r"Upload failed - status 0; error: stalled"):
        await transfers.upload(f"http://127.0.0.1:{port}/u", large, "droplet.tgz")

    over.set()
    server.close()
    await server.wait_closed()
    assert len(stuck) == 1


async def test_an_upload_needs_no_memory_for_its_file(
    transfers: Transfers, controller: Peer, tmp_path: Path
) -> None:
    """300 MB from disk, read by the peer as they come."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(300 * MIB)
    taken = 0

    async def take(request: web.Request) -> web.StreamResponse:
        nonlocal taken
        async for piece in request.content.iter_any():
            taken += len(piece)
        return web.Response()

    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await transfers.upload(controller.handle("/u", take), large, "droplet.tgz")
    after_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert taken > 300 * MIB
    assert after_kib - before_kib < 50 * 1024


async def test_a_job_that_is_polled_holds_no_slot(controller: Peer, droplet: Path) -> None:
    """Five minutes of polling are no reason for a start to wait for its droplet."""
    store = Store(controller, job_at(f"{controller.base_url}/job"), state("queued"))
    transfers = Transfers(1, stall_s=STALL_S, poll_period_s=0.05, poll_limit_s=WAIT_S)
    upload = asyncio.create_task(transfers.upload(store.url, droplet, "droplet.tgz"))
    await until(lambda: len(store.polled) > 1)

    assert await download(transfers, controller.serve(DATA)[1]) == DATA

    upload.cancel()
    await asyncio.gather(upload, return_exceptions=True)
    await transfers.close()
