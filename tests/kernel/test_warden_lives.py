"""Jobs and containers whose clients leave, whose disk is full, or whose stop and destroy do not go as they should."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
from depot_kit import close_empty, until
from warden_client import (
    COPY_IN,
    CREATE,
    DESTROY,
    INFO,
    LINK,
    LIST,
    PING,
    RUN,
    SPAWN,
    STOP,
    STREAM,
    Client,
    ServerError,
)
from warden_kit import Warden, open_warden
from warden_kit import client as client
from warden_kit import rootfs as rootfs
from warden_kit import warden as warden

pytestmark = pytest.mark.kernel

STUBBORN = b"trap '' TERM; echo up; while :; do sleep 0.1; done"


async def test_a_job_has_its_number_whatever_else_runs(warden: Warden, tmp_path: Path) -> None:
    """A copy is made by jobs too, whose ids are not those of the protocol."""
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "file").open("wb") as file:
        file.truncate(4 << 30)
    copying, client = await warden.client(), await warden.client()
    handle = await client.create()
    stop = "while :; do for p in /proc/[0-9]*; do " + (
        'case "$(cat $p/comm 2>/dev/null)" in tar) kill -STOP ${p#/proc/}; echo; exit;; esac; done; done'
    )
    job = (await client.call(SPAWN, {1: handle, 2: stop.encode()}))[1]
    copying.send(COPY_IN, {1: handle, 2: str(tree).encode(), 3: b"/tmp/in"})
    await warden.wrote(job)
    numbers = [(await client.call(SPAWN, {1: handle, 2: b"true"}))[1] for _ in range(5)]
    assert numbers == [2, 3, 4, 5, 6]
    await client.call(DESTROY, {1: handle})
    with pytest.raises(ServerError):
        await copying.receive()
    for one in (copying, client):
        await one.close()


async def test_a_link_that_leaves_takes_no_output_with_it(client: Client, warden: Warden) -> None:
    """Also when the job ends before another client comes."""
    handle = await client.create()
    leaving = await warden.client()
    leaving.send(RUN, {1: handle, 2: b"sleep 1; echo kept; exit 6"})
    await until(lambda: warden.is_linked(handle, 1), lambda: "no job")
    leaving.writer.transport.abort()
    await until(lambda: not warden.is_linked(handle, 1), lambda: "the server did not notice")
    while 44 in (await client.call(INFO, {1: handle})).fields:
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.2)
    done = await client.call(LINK, {1: handle, 2: 1})
    assert (done[1], done[2]) == (6, b"kept\n")


async def test_a_result_is_given_though_the_disk_is_full(
    client: Client, warden: Warden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and a stream has no error behind its last response."""
    handle = await client.create()
    jobs = [(await client.call(SPAWN, {1: handle, 2: b"sleep 0.3; echo out"}))[1] for _ in range(2)]

    def full(_record: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(warden.service._containers[handle].container, "keep_record", full)
    assert (await client.call(LINK, {1: handle, 2: jobs[0]}))[2] == b"out\n"
    client.send(STREAM, {1: handle, 2: jobs[1]})
    assert (await client.receive())[2] == b"out\n"
    assert (await client.receive())[3] == 0
    await client.call(PING)
    for job in jobs:
        with pytest.raises(ServerError, match="no such job"):
            await client.call(LINK, {1: handle, 2: job})
    with pytest.raises(ServerError, match="No space left"):
        await client.call(RUN, {1: handle, 2: b"true"})


async def test_a_result_that_could_not_be_read_can_be_linked_again(
    client: Client, warden: Warden, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await client.create()
    job = (await client.call(SPAWN, {1: handle, 2: b"echo out"}))[1]
    box = warden.service._containers[handle]

    async def broken() -> object:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(box.container, "info", broken)
        with pytest.raises(ServerError, match="Too many open files"):
            await client.call(LINK, {1: handle, 2: job})
    assert (await client.call(LINK, {1: handle, 2: job}))[2] == b"out\n"


async def test_a_stop_can_be_shortened(client: Client, warden: Warden) -> None:
    """A kill during the grace of another stop."""
    handle = await client.create()
    await warden.wrote((await client.call(SPAWN, {1: handle, 2: STUBBORN}))[1])
    await client.call(STOP, {1: handle, 10: 1})
    assert (await client.call(INFO, {1: handle}))[10] == b"stopped"
    await client.call(STOP, {1: handle, 20: 1}, timeout_s=6)


async def test_a_stop_that_was_cut_off_is_carried_out_by_the_next_server(
    tmp_path: Path, rootfs: Path
) -> None:
    warden = await open_warden(tmp_path, rootfs)
    client = await warden.client()
    handle = await client.create(handle=b"kept")
    job = (await client.call(SPAWN, {1: handle, 2: STUBBORN}))[1]
    await warden.wrote(job)
    await client.call(STOP, {1: handle, 10: 1})
    await client.call(INFO, {1: handle})
    await warden.close()
    await warden.depot.close()
    warden = await open_warden(tmp_path, rootfs)
    client = await warden.client()
    await client.call(STOP, {1: handle, 20: 1}, timeout_s=6)
    assert (await client.call(LINK, {1: handle, 2: job}))[1] == 255
    await client.call(DESTROY, {1: handle})
    await warden.close()
    await close_empty(warden.depot)


async def test_only_a_connection_that_refers_to_a_container_begins_its_grace_time(
    client: Client, warden: Warden
) -> None:
    """The end of another one does not begin it again."""
    maker = await warden.client()
    handle = await maker.create(grace_time=60)
    await maker.close()
    box = warden.service._containers[handle]
    await until(lambda: box._timer is not None, lambda: "no grace time")
    timer = box._timer
    assert timer is not None
    await client.close()
    await until(lambda: not warden.server._connections, lambda: "still connected")
    assert box._timer is timer
    other = await warden.client()
    await other.call(DESTROY, {1: handle})
    await other.close()


async def test_what_the_depot_removed_later_is_forgotten(
    client: Client, warden: Warden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destroy that fails is tried again by the depot. The handle is free then."""
    handle = await client.create(handle=b"again")
    name = warden.depot.handles()[0]

    async def broken(_handle: str) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patched:
        patched.setattr(warden.depot, "destroy", broken)
        with pytest.raises(ServerError, match="busy"):
            await client.call(DESTROY, {1: handle})
    assert (await client.call(LIST)).fields[1] == [handle]
    await warden.depot.destroy(name)
    assert (await client.call(LIST)).fields == {}
    assert await client.create(handle=b"again") == handle


async def test_clients_that_use_one_container_at_once_all_get_an_answer(warden: Warden) -> None:
    """Destroy, stop, link, stream, run and info, in the same moment; nothing is left."""
    clients = [await warden.client() for _ in range(16)]
    for _ in range(3):
        handle = await clients[0].create()
        job = (await clients[0].call(SPAWN, {1: handle, 2: b"while :; do echo x; sleep 0.05; done"}))[1]
        requests = [
            (LINK, {1: handle, 2: job}),
            (STREAM, {1: handle, 2: job}),
            (RUN, {1: handle, 2: b"echo hi"}),
            (STOP, {1: handle}),
            (DESTROY, {1: handle}),
            (INFO, {1: handle}),
            (SPAWN, {1: handle, 2: b"sleep 100"}),
            (DESTROY, {1: handle}),
        ]
        for one, (kind, fields) in zip(clients, requests * 2, strict=True):
            one.send(kind, fields)

        async def answered(one: Client, kind: int) -> str:
            try:
                while 3 not in (await one.receive(40)).fields and kind == STREAM:
                    pass
            except ServerError as e:
                return str(e)
            return ""

        texts = await asyncio.gather(
            *(answered(one, kind) for one, (kind, _) in zip(clients, requests * 2, strict=True))
        )
        assert not [text for text in texts if "internal error" in text]
        assert warden.depot.handles() == ()
        assert not warden.service._containers
    for one in clients:
        await one.call(PING)
        await one.close()


async def test_a_handle_that_no_record_can_hold_is_refused(client: Client) -> None:
    """Else the next server would not know it."""
    with pytest.raises(ServerError, match="handle: expected at most 4096 bytes"):
        await client.call(CREATE, {3: b"h" * 4097})
    assert len(await client.create(handle=b"h" * 4096)) == 4096
