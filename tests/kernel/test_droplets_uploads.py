"""Uploads over real HTTP: each failure gives the error text of the original DEA."""

from __future__ import annotations

import asyncio
import base64
import resource
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
    until,
    with_credentials,
)

from agent.droplets.transfer import TransferError, Transfers

pytestmark = pytest.mark.kernel

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
        (job_at("/job"), [], "Error uploading: expected an http or https URL"),
        (job_at("file:///etc/passwd"), [], "Error uploading: expected an http or https URL"),
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


async def test_a_server_that_hangs_up(transfers: Transfers, controller: Peer, droplet: Path) -> None:
    """Before any word of an answer; whether the system notices a reset or only an end is chance."""
    with pytest.raises(TransferError, match=r"^Error uploading: \(Upload failed - status 0; error: [A-Z]"):
        await transfers.upload(controller.handle("/u", hang_up), droplet, "droplet.tgz")


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
