"""Connections of Warden's protocol: frames in any shape, clients that leave, grace time, drain and restart."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from depot_kit import close_empty, until
from warden_client import (
    CREATE,
    DESTROY,
    ECHO,
    INFO,
    LIMIT_CPU,
    LIMIT_MEMORY,
    LINK,
    LIST,
    NET_IN,
    NET_OUT,
    PING,
    RUN,
    SPAWN,
    STOP,
    STREAM,
    Client,
    ServerError,
    frame,
    unpack,
)
from warden_kit import Warden, open_warden
from warden_kit import client as client
from warden_kit import rootfs as rootfs
from warden_kit import warden as warden

pytestmark = pytest.mark.kernel


async def test_the_socket_has_its_mode_before_anybody_connects(warden: Warden) -> None:
    assert stat.S_IMODE(warden.socket.stat().st_mode) == 0o700


async def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    """Also in one write, and in single bytes."""
    for number in range(50):
        client.send(ECHO, {1: str(number).encode()})
    for number in range(50):
        assert (await client.receive())[1] == str(number).encode()
    for byte in frame(ECHO, {1: b"slow"}):
        client.writer.write(bytes([byte]))
        await client.writer.drain()
        await asyncio.sleep(0)
    assert (await client.receive())[1] == b"slow"


async def test_a_message_that_is_none_is_answered_and_the_next_one_too(client: Client) -> None:
    """The original answered neither."""
    bent = [
        frame(PING, b"")[:-2].replace(b"91", b"91") + b"\r\n",
        b"3\r\n\xff\xff\xff\r\n",
        frame(4711, b""),
        frame(1, {2: b"an error is no request"}),
        frame(CREATE, b"\xff"),
        frame(SPAWN, {1: b"h"}),
        b"0\r\n\r\n",
    ]
    client.writer.write(b"".join(bent))
    client.send(PING)
    assert (await client.receive()).kind == PING
    for text in ("Message", "type", "expected a request", "CreateRequest", "script", "type"):
        with pytest.raises(ServerError, match=text):
            await client.receive()
    assert (await client.receive()).kind == PING


@pytest.mark.parametrize(
    "bytes_",
    [b"x\r\n", b"-1\r\n", b"\r\n\r\n", b"99999999999999\r\n", b"4\r\nabcdefgh", b"1" * 100, b"12 \r\n"],
)
async def test_what_is_no_frame_is_reported_and_ends_the_connection(warden: Warden, bytes_: bytes) -> None:
    """The requests before it are answered. Other connections are not touched."""
    client = await warden.client()
    client.send(ECHO, {1: b"before"})
    client.writer.write(bytes_)
    client.send(PING)
    assert (await client.receive())[1] == b"before"
    with pytest.raises(ServerError, match="expected"):
        await client.receive()
    assert await client.reader.read() == b""
    await client.close()
    other = await warden.client()
    assert (await other.call(PING)).kind == PING
    await other.close()


async def test_protobufs_own_tool_reads_what_is_sent(client: Client, tmp_path: Path) -> None:
    """`protoc --decode` knows neither the server's code nor the client's."""
    (tmp_path / "w.proto").write_text(
        """syntax = "proto2"; package warden;
        message Message { required int32 type = 1; required bytes payload = 2; }
        message BandwidthStat { optional uint64 in_rate = 1; }
        message InfoResponse { optional string state = 10; optional string host_ip = 30;
            optional BandwidthStat bandwidth_stat = 43; repeated uint64 job_ids = 44; }
        message LinkResponse { optional uint32 exit_status = 1; optional string stdout = 2;
            optional string stderr = 3; optional InfoResponse info = 4; }"""
    )
    handle = await client.create()
    client.send(RUN, {1: handle, 2: b"echo hello; exit 7"})
    length = int(await client.reader.readuntil(b"\r\n"))
    message = await client.reader.readexactly(length)

    def decoded(kind: str, data: bytes) -> str:
        argv = ("protoc", f"--decode=warden.{kind}", f"-I{tmp_path}", "w.proto")
        done = subprocess.run(argv, input=data, capture_output=True, check=True, timeout=30)
        return done.stdout.decode()

    assert decoded("Message", message).startswith("type: 23\n")
    text = decoded("LinkResponse", unpack(message)[2][0])
    assert 'exit_status: 7\nstdout: "hello\\n"\nstderr: ""\ninfo {\n  state: "active"' in text
    assert "in_rate: 4294967295" in text


async def test_a_client_that_leaves_ends_its_wait_and_not_the_job(client: Client, warden: Warden) -> None:
    handle = await client.create()
    leaving = await warden.client()
    leaving.send(RUN, {1: handle, 2: b"sleep 3; echo done"})
    await until(lambda: warden.is_linked(handle, 1), lambda: "no job")
    leaving.writer.transport.abort()
    job = (await client.call(INFO, {1: handle}))[44]
    assert (await client.call(LINK, {1: handle, 2: job}))[2] == b"done\n"


async def test_a_client_that_leaves_in_a_create_leaves_a_whole_container_to_the_grace_time(
    warden: Warden,
) -> None:
    leaving = await warden.client()
    leaving.send(CREATE, {2: 1, 3: b"orphan"})
    await leaving.writer.drain()
    leaving.writer.transport.abort()
    await until(lambda: warden.depot.handles() != (), lambda: "never made")
    await until(lambda: warden.depot.handles() == (), lambda: "never destroyed", 20)


async def test_a_container_is_destroyed_when_nobody_refers_to_it_for_the_grace_time(warden: Warden) -> None:
    """Connections refer to what exists when they begin, to what they make, and to what they name."""
    before, maker = await warden.client(), await warden.client()
    kept = await maker.create(grace_time=1)
    named = await before.call(INFO, {1: kept})
    assert named[10] == b"active"
    await maker.close()
    await asyncio.sleep(1.5)
    assert (await before.call(LIST)).fields[1] == [kept]
    later = await warden.client()  # refers to it without naming it
    await before.close()
    await asyncio.sleep(1.5)
    assert (await later.call(LIST)).fields[1] == [kept]
    await later.close()
    await until(lambda: warden.depot.handles() == (), lambda: "never destroyed", 20)


async def test_a_restart_keeps_handles_jobs_and_ports(tmp_path: Path, rootfs: Path) -> None:
    """Also without any farewell. Numbers of jobs go on."""
    warden = await open_warden(tmp_path, rootfs)
    client = await warden.client()
    handle = await client.create(handle=b"\xff kept")
    running = (await client.call(SPAWN, {1: handle, 2: b"echo before; sleep 2; echo after; exit 9"}))[1]
    quiet = (await client.call(SPAWN, {1: handle, 2: b"echo never", 5: 1}))[1]
    port = (await client.call(NET_IN, {1: handle, 2: 80}))[1]
    await warden.close()
    await warden.depot.close()

    warden = await open_warden(tmp_path, rootfs)
    client = await warden.client()
    assert (await client.call(LIST)).fields[1] == [handle]
    result = await client.call(LINK, {1: handle, 2: running})
    assert (result[1], result[2]) == (9, b"before\nafter\n")
    assert (await client.call(LINK, {1: handle, 2: quiet}))[2] == b""
    assert (await client.call(SPAWN, {1: handle, 2: b"true"}))[1] == quiet + 1
    assert (await client.call(NET_IN, {1: handle, 2: 81}))[1] == port + 1
    await client.call(DESTROY, {1: handle})
    await warden.close()
    await close_empty(warden.depot)


async def test_a_drain_lets_requests_end_and_closes_what_waits(warden: Warden) -> None:
    """Link, Run, Stream and idle connections are closed at once; a Create gets its response."""
    idle, waiting, busy = [await warden.client() for _ in range(3)]
    handle = await idle.create()
    job = (await idle.call(SPAWN, {1: handle, 2: b"sleep 100"}))[1]
    waiting.send(STREAM, {1: handle, 2: job})
    busy.send(CREATE, {3: b"made"})
    await busy.writer.drain()
    await until(lambda: bool(warden.service._creating), lambda: "the create never began")
    async with asyncio.timeout(20):
        await warden.server.drain()
    assert (await busy.receive())[1] == b"made"
    for one in (idle, waiting, busy):
        assert await one.reader.read() == b""
    with pytest.raises(OSError, match="refused"):
        await warden.client()
    assert len(warden.depot.handles()) == 2


async def test_output_with_a_tag_goes_to_syslog(tmp_path: Path, rootfs: Path) -> None:
    """One datagram a line, each stream with its priority; a tag cannot make a line of its own."""
    path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as log:
        log.bind(str(path))
        warden = await open_warden(tmp_path, rootfs, syslog_socket=path)
        client = await warden.client()
        handle = await client.create()
        script = "echo one; echo two; echo three >&2; printf four"
        assert (await client.run(handle, script, log_tag=b"a b\n<0>"))[1] == b"one\ntwo\nfour"
        seen = list[bytes]()
        async with asyncio.timeout(10):
            while len(seen) < 4:
                seen.append(await asyncio.get_running_loop().sock_recv(log, 10000))
        await client.close()
        await warden.close()
        await close_empty(warden.depot)
    lines = sorted((line[:4], line.split(b" ", 3)[-1]) for line in seen)
    assert lines == [
        (b"<11>", b"warden.a_b_<0>: three"),
        (b"<14>", b"warden.a_b_<0>: four"),
        (b"<14>", b"warden.a_b_<0>: one"),
        (b"<14>", b"warden.a_b_<0>: two"),
    ]


async def test_scripts_find_the_files_of_the_original(client: Client, warden: Warden) -> None:
    """Snapshot, pid, config, and on cgroup v1 the limits."""
    handle = await client.create(handle=b"\xff seen", grace_time=7)
    port = (await client.call(NET_IN, {1: handle, 2: 8080}))[1]
    await client.call(NET_OUT, {1: handle, 2: b"192.0.2.1", 4: b"80:90", 8: 1})
    await client.call(LIMIT_MEMORY, {1: handle, 2: 64 << 20})
    await client.call(LIMIT_CPU, {1: handle, 2: 77})
    job = (await client.call(SPAWN, {1: handle, 2: b"sleep 100", 5: 1, 6: b"tag"}))[1]
    info = await client.call(INFO, {1: handle})
    directory = Path(info[32].decode())
    (depot_handle,) = warden.depot.handles()
    box = warden.depot.find(depot_handle)

    seen = json.loads((directory / "snapshot.json").read_bytes())
    network = f"{info[30].decode().rsplit('.', 1)[0]}.{int(info[30].decode().rsplit('.', 1)[1]) - 1}"
    assert (seen["state"], seen["grace_time"]) == ("active", 7)
    assert seen["jobs"] == {str(job): {"discard_output": True, "log_tag": "tag"}}
    assert seen["resources"] == {
        "handle": "\ufffd seen",
        "container_id": box.link_id,
        "network": network,
        "uid": box.ids_first,
        "ports": [port],
        "net_in": [[port, 8080]],
        "net_out": [["192.0.2.1", "80:90", 0, -1, -1, True]],
    }
    assert (directory / "run/wshd.pid").read_text() == f"{box.pid}\n"
    config = (directory / "etc/config").read_text().splitlines()
    assert {f"id={box.link_id}", f"network_container_ip={info[31].decode()}"} < set(config)
    links = warden.settings.cgroup_links
    assert links is not None
    if box.v1_cgroups:
        assert (links / f"cpu/instance-{box.link_id}/cpu.shares").read_text() == "77\n"
        limit = (links / f"memory/instance-{box.link_id}/memory.limit_in_bytes").read_text()
        assert int(limit) == 64 << 20
        assert (links / f"devices/instance-{box.link_id}/devices.list").exists()
    await client.call(STOP, {1: handle, 20: 1})
    assert json.loads((directory / "snapshot.json").read_bytes())["state"] == "stopped"
    await client.call(DESTROY, {1: handle})
    assert not list(links.glob("*/instance-*"))


async def test_links_are_not_made_where_others_may_write(tmp_path: Path, rootfs: Path) -> None:
    """/tmp/warden may be there before the server, and anybody's. The container works all the same."""
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "depot")
    for name in ("open", "link"):
        warden = await open_warden(tmp_path, rootfs, cgroup_links=tmp_path / name / "cgroup")
        client = await warden.client()
        handle = await client.create()
        assert (await client.run(handle, "echo works"))[1] == b"works\n"
        await client.close()
        await warden.close()
        await close_empty(warden.depot)
        assert not list(tmp_path.rglob("instance-*"))


async def test_a_container_without_its_snapshot_is_destroyed_at_the_next_start(
    tmp_path: Path, rootfs: Path
) -> None:
    """As in the original. Its links go too."""
    warden = await open_warden(tmp_path, rootfs)
    client = await warden.client()
    info = await client.call(INFO, {1: await client.create()})
    await warden.close()
    await warden.depot.close()
    (Path(info[32].decode()) / "snapshot.json").unlink()

    warden = await open_warden(tmp_path, rootfs)
    client = await warden.client()
    assert (await client.call(LIST)).fields == {}
    assert not list((tmp_path / "cgroup").glob("*/instance-*"))
    await client.close()
    await warden.close()
    await close_empty(warden.depot)
