"""Every request of Warden's protocol, from a client that knows the wire alone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from depot_kit import until
from warden_client import (
    COPY_IN,
    COPY_OUT,
    CREATE,
    DESTROY,
    ECHO,
    INFO,
    LIMIT_CPU,
    LIMIT_DISK,
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
    unpack,
)
from warden_kit import Warden
from warden_kit import client as client
from warden_kit import rootfs as rootfs
from warden_kit import warden as warden

pytestmark = pytest.mark.kernel


async def test_ping_echo_and_an_empty_list(client: Client) -> None:
    """The list has no field at all when there is no container; an echo returns any bytes."""
    assert (await client.call(PING)).fields == {}
    assert (await client.call(LIST)).fields == {}
    assert (await client.call(ECHO, {1: b"\xc2\x82\xff\x00"}))[1] == b"\xc2\x82\xff\x00"


async def test_a_handle_is_given_or_asked_for(client: Client) -> None:
    """Any bytes may be asked for. A given one has 11 characters of [0-9a-v]."""
    given, asked = await client.create(), await client.create(handle=b"\xc2\x82\xff")
    assert len(given) == 11
    assert set(given) <= set(b"0123456789abcdefghijklmnopqrstuv")
    assert asked == b"\xc2\x82\xff"
    assert (await client.call(LIST)).fields[1] == [given, asked]
    with pytest.raises(ServerError, match="already exists") as refused:
        await client.create(handle=b"\xc2\x82\xff")
    assert str(refused.value).encode("utf-8", "surrogateescape") == (
        b"container with handle: \xc2\x82\xff already exists."
    )


async def test_two_creates_of_one_handle_give_one_container(warden: Warden) -> None:
    """At the same time, over two connections."""
    clients = [await warden.client() for _ in range(4)]
    made = await asyncio.gather(*(one.create(handle=b"same") for one in clients), return_exceptions=True)
    assert sorted(map(str, made)) == sorted(
        [str(b"same"), *["container with handle: same already exists."] * 3]
    )
    assert len(warden.depot.handles()) == 1
    for one in clients:
        await one.close()


async def test_a_script_has_the_environment_of_the_original(client: Client) -> None:
    """User, home, PATH and limits; root when privileged."""
    handle = await client.create()
    status, out, err = await client.run(
        handle, "id -u; pwd; env | sort; ulimit -n; ulimit -c; umask; exit 37"
    )
    assert (status, err) == (37, b"")
    lines = out.decode().splitlines()
    assert lines[:2] == ["2000", "/home/vcap"]
    assert {"HOME=/home/vcap", "USER=vcap", "PATH=/bin:/usr/bin"} < set(lines)
    assert lines[-3:] == ["1024", "0", "0022"]
    status, out, _ = await client.run(handle, "id -u; pwd; echo $PATH $USER", privileged=1)
    assert out == b"0\n/root\n/sbin:/bin:/usr/sbin:/usr/bin root\n"


async def test_limits_of_one_request_do_not_stay(client: Client) -> None:
    """In the original they became the default of every later job."""
    handle = await client.create()
    assert (await client.run(handle, "ulimit -n", rlimits={10: 777}))[1] == b"777\n"
    assert (await client.run(handle, "ulimit -n"))[1] == b"1024\n"


async def test_a_signal_and_a_lost_shell_are_255(client: Client) -> None:
    handle = await client.create()
    assert (await client.run(handle, "kill -9 $$"))[0] == 255


async def test_spawn_link_and_then_there_is_no_such_job(client: Client, warden: Warden) -> None:
    """All that link at the same time get the same result; who comes later gets an error."""
    handle = await client.create()
    job = (await client.call(SPAWN, {1: handle, 2: b"sleep 0.5; echo out; echo err >&2; exit 3"}))[1]
    assert (await client.call(INFO, {1: handle}))[44] == job
    others = [await warden.client() for _ in range(3)]
    results = await asyncio.gather(*(one.call(LINK, {1: handle, 2: job}) for one in (client, *others)))
    for result in results:
        assert (result[1], result[2], result[3]) == (3, b"out\n", b"err\n")
        info = unpack(result[4])
        assert info[10] == [b"active"]
        assert 44 not in info
    with pytest.raises(ServerError, match=r"^no such job$"):
        await client.call(LINK, {1: handle, 2: job})
    with pytest.raises(ServerError, match=r"^no such job$"):
        await client.call(STREAM, {1: handle, 2: 4711})
    for one in others:
        await one.close()


async def test_jobs_are_numbered_from_1_over_all_containers(client: Client) -> None:
    first, second = await client.create(), await client.create()
    numbers = [(await client.call(SPAWN, {1: handle, 2: b"true"}))[1] for handle in (first, second, first)]
    assert numbers == [1, 2, 3]


async def test_a_stream_is_replayed_from_its_beginning(client: Client, warden: Warden) -> None:
    """The client leaves in the middle; the job stays, and another reads everything."""
    handle = await client.create()
    job = (await client.call(SPAWN, {1: handle, 2: b"echo one; sleep 1; echo two >&2; exit 5"}))[1]
    leaving = await warden.client()
    leaving.send(STREAM, {1: handle, 2: job})
    first = await leaving.receive()
    assert (first[1], first[2]) == (b"stdout", b"one\n")
    await leaving.close()

    client.send(STREAM, {1: handle, 2: job})
    seen = dict[bytes, bytes]()
    while 3 not in (response := await client.receive()).fields:
        seen[response[1]] = seen.get(response[1], b"") + response[2]
    assert seen == {b"stdout": b"one\n", b"stderr": b"two\n"}
    assert response[3] == 5
    assert 4 in response.fields
    with pytest.raises(ServerError, match="no such job"):
        await client.call(LINK, {1: handle, 2: job})


async def test_no_output_is_lost(client: Client) -> None:
    """The original lost the tail of a burst."""
    handle = await client.create()
    for _ in range(5):
        status, out, _ = await client.run(handle, "head -c 300000 /dev/zero | tr '\\0' x")
        assert (status, len(out)) == (0, 300_000)


async def test_output_past_the_limit_ends_the_job(client: Client) -> None:
    """255, with what was kept, and an event."""
    handle = await client.create()
    status, out, _ = await client.run(handle, "yes")
    assert status == 255
    assert (10 << 20) - 200 < len(out) <= (10 << 20) + (64 << 10)
    assert (await client.call(INFO, {1: handle})).fields[20] == [b"command exceeded maximum output"]


async def test_discarded_output_is_empty_and_has_no_limit(client: Client) -> None:
    handle = await client.create()
    status, out, err = await client.run(handle, "head -c 20000000 /dev/zero; exit 4", discard_output=1)
    assert (status, out, err) == (4, b"", b"")


async def test_info_has_what_the_original_has(client: Client, warden: Warden) -> None:
    handle = await client.create()
    await client.run(handle, "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done")
    info = await client.call(INFO, {1: handle})
    assert info[10] == b"active"
    assert info[30].decode().rsplit(".", 1)[0] == info[31].decode().rsplit(".", 1)[0]
    assert Path(info[32].decode()).is_relative_to(warden.depot.settings.depot_dir)
    memory, cpu, disk, bandwidth = (unpack(info[number]) for number in (40, 41, 42, 43))
    assert memory[2][0] >= 0
    assert memory[14] == [0x7FFF_FFFF_FFFF_F000]
    assert cpu[1][0] > 1_000_000
    assert 2 in cpu
    assert 3 in cpu
    assert disk[1][0] >= 0
    assert bandwidth == {number: [0xFFFF_FFFF] for number in (1, 2, 3, 4)}


async def test_stop_ends_the_processes_and_keeps_the_container(client: Client, warden: Warden) -> None:
    """TERM, which a script may trap; copies and limits still work, new jobs do not."""
    handle = await client.create()
    job = (
        await client.call(SPAWN, {1: handle, 2: b"trap 'exit 37' TERM; echo up; while :; do sleep 0.1; done"})
    )[1]
    await warden.wrote(job)
    began = asyncio.get_running_loop().time()
    await client.call(STOP, {1: handle})
    assert asyncio.get_running_loop().time() - began < 5
    assert (await client.call(LINK, {1: handle, 2: job}))[1] == 37
    assert (await client.call(INFO, {1: handle}))[10] == b"stopped"
    with pytest.raises(
        ServerError, match=r"^Container state must be one of 'active', current state is 'stopped'$"
    ):
        await client.call(RUN, {1: handle, 2: b"true"})
    await client.call(STOP, {1: handle})
    assert (await client.call(LIMIT_CPU, {1: handle, 2: 10}))[1] == 10


async def test_stop_kill_and_in_the_background(client: Client, warden: Warden) -> None:
    handle = await client.create()
    job = (await client.call(SPAWN, {1: handle, 2: b"trap '' TERM; echo up; while :; do sleep 0.1; done"}))[1]
    await warden.wrote(job)
    await client.call(STOP, {1: handle, 10: 1, 20: 1})
    assert (await client.call(LINK, {1: handle, 2: job}, timeout_s=9))[1] == 255, "KILL comes after 10 s else"


async def test_destroy_and_unknown_handles(client: Client, warden: Warden) -> None:
    """A link that waits gets its result with the last info."""
    handle = await client.create()
    job = (await client.call(SPAWN, {1: handle, 2: b"sleep 100"}))[1]
    linking = await warden.client()
    linking.send(LINK, {1: handle, 2: job})
    await until(lambda: warden.is_linked(handle, job), lambda: "never linked")
    await client.call(DESTROY, {1: handle})
    result = await linking.receive()
    assert result[1] == 255
    assert 31 in unpack(result[4])
    for kind in (STOP, DESTROY, INFO, LIMIT_CPU):
        with pytest.raises(ServerError, match=r"^unknown handle$"):
            await client.call(kind, {1: handle})
    assert warden.depot.handles() == ()
    await linking.close()


async def test_limits(client: Client) -> None:
    """Without a value they are read."""
    handle = await client.create()
    assert (await client.call(LIMIT_MEMORY, {1: handle}))[1] == 0x7FFF_FFFF_FFFF_F000
    assert (await client.call(LIMIT_MEMORY, {1: handle, 2: (64 << 20) + 17}))[1] == 64 << 20
    assert (await client.call(LIMIT_MEMORY, {1: handle, 2: 128 << 20}))[1] == 128 << 20
    assert (await client.call(LIMIT_MEMORY, {1: handle}))[1] == 128 << 20
    assert (await client.call(LIMIT_CPU, {1: handle}))[1] == 1024
    assert (await client.call(LIMIT_CPU, {1: handle, 2: 1}))[1] == 2


async def test_disk_limits_under_all_their_names(client: Client) -> None:
    """The stronger name wins; writing past it is refused by the kernel."""
    handle = await client.create()
    done = await client.call(LIMIT_DISK, {1: handle, 30: 1, 13: 4096})
    assert {done[number] for number in (10, 11, 12, 13)} == {4096}
    assert {done[number] for number in (30, 31, 32, 33)} == {4096 * 1024}
    status, _, err = await client.run(handle, "dd if=/dev/zero of=/home/vcap/big bs=1M count=8")
    assert status != 0
    assert b"No space left" in err
    await client.call(LIMIT_DISK, {1: handle, 31: 64 << 20})
    assert (await client.run(handle, "dd if=/dev/zero of=/home/vcap/big bs=1M count=8"))[0] == 0


async def test_out_of_memory_stops_the_container(client: Client) -> None:
    handle = await client.create()
    await client.call(LIMIT_MEMORY, {1: handle, 2: 32 << 20})
    await client.run(handle, "tail -c 200000000 /dev/zero")
    async with asyncio.timeout(15):
        while (info := await client.call(INFO, {1: handle}))[10] != b"stopped":
            await asyncio.sleep(0.05)
    assert b"out of memory" in info.fields[20]


async def test_bind_mounts(client: Client, tmp_path: Path) -> None:
    """Read-only ones say so."""
    source = tmp_path / "it's; here"
    source.mkdir()
    source.chmod(0o777)
    (source / "file").write_text("of the host\n")
    binds = [(str(source).encode(), b"/tmp/ro", 0), (str(source).encode(), b"/tmp/rw", 1)]
    handle = await client.create(binds=binds)
    assert (await client.run(handle, "cat /tmp/ro/file"))[1] == b"of the host\n"
    _, _, err = await client.run(handle, "echo x > /tmp/ro/new", privileged=1)
    assert b"Read-only file system" in err
    assert (await client.run(handle, "echo x > /tmp/rw/new"))[0] == 0
    assert (source / "new").read_text() == "x\n"
    with pytest.raises(ServerError, match=r"^Source path for bind mount does not exist: /nowhere$"):
        await client.create(binds=[(b"/nowhere", b"/tmp/x", 0)])
    with pytest.raises(ServerError, match=r"^rootfs /nowhere not found$"):
        await client.create(rootfs=b"/nowhere")


async def test_a_network_can_be_asked_for(client: Client) -> None:
    handle = await client.create(network=b"10.254.0.40")
    info = await client.call(INFO, {1: handle})
    assert (info[30], info[31]) == (b"10.254.0.41", b"10.254.0.42")
    for taken in (b"10.254.0.40", b"192.0.2.4"):
        with pytest.raises(ServerError, match=f"^Could not acquire network: {taken.decode()}$"):
            await client.create(network=taken)


async def test_ports_are_published(client: Client) -> None:
    handle = await client.create()
    given = await client.call(NET_IN, {1: handle})
    assert given[1] == given[2] >= 1024
    asked = await client.call(NET_IN, {1: handle, 2: 8080, 3: 10_333})
    assert (asked[1], asked[2]) == (10_333, 8080)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, r"^Please specify network, port, and/or port_range\.$"),
        ({5: 2}, r"^Please specify network, port, and/or port_range\.$"),
        ({4: b"80:80"}, "^Port range maximum must be greater than minimum$"),
        ({4: b"81:80"}, "^Port range maximum must be greater than minimum$"),
        ({4: b"x:y"}, "^port_range: expected FIRST:LAST, got 'x:y'$"),
        ({2: b"nonsense"}, "networks: expected an IPv4 address, network or range, got 'nonsense'"),
        ({2: b"192.0.2.1", 3: 80, 5: 2}, "only tcp and udp have ports"),
    ],
)
async def test_bad_permissions_are_refused(client: Client, fields: dict[int, object], text: str) -> None:
    handle = await client.create()
    with pytest.raises(ServerError, match=text):
        await client.call(NET_OUT, {1: handle, **fields})


async def test_permissions_are_taken(client: Client, warden: Warden) -> None:
    handle = await client.create()
    for fields in (
        {2: b"192.0.2.1"},
        {2: b"192.0.2.0/24", 3: 80},
        {2: b"192.0.2.1-192.0.2.9", 4: b"80:90", 5: 1},
        {2: b"192.0.2.1", 5: 2, 6: 8, 7: -1, 8: 1},
        {2: b"192.0.2.1", 5: 3},
        {4: b"443"},
    ):
        await client.call(NET_OUT, {1: handle, **fields})
    egress = warden.depot.find(handle.decode())._parts.egress
    assert [(rule.protocol.value, rule.networks, rule.icmp_type, rule.log) for rule in egress] == [
        ("tcp", ("192.0.2.1",), None, False),
        ("tcp", ("192.0.2.0/24",), None, False),
        ("udp", ("192.0.2.1-192.0.2.9",), None, False),
        ("icmp", ("192.0.2.1",), 8, True),
        ("all", ("192.0.2.1",), None, False),
        ("tcp", (), None, False),
    ]


async def test_copies_follow_the_paths_of_rsync(client: Client, tmp_path: Path) -> None:
    """With a slash at its end, only the contents of a directory are copied. Hard links become copies."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_text("content\n")
    (tree / "sub/file").chmod(0o640)
    os.link(tree / "sub/file", tree / "twin")
    (tree / "link").symlink_to("sub/file")
    handle = await client.create()
    for source, target in (
        (tree, "/tmp/a"),
        (f"{tree}/", "/tmp/b"),
        (tree / "twin", "/tmp/b/renamed"),
        (tree / "twin", "/tmp/b/"),
    ):
        await client.call(COPY_IN, {1: handle, 2: str(source).encode(), 3: target.encode()})
    _, out, err = await client.run(
        handle, "cd /tmp && find a b | sort; cat b/link b/renamed; stat -c '%U %a %h' b/sub/file b/twin"
    )
    assert err == b""
    assert out.decode().splitlines() == [
        "a", "a/tree", "a/tree/link", "a/tree/sub", "a/tree/sub/file", "a/tree/twin",
        "b", "b/link", "b/renamed", "b/sub", "b/sub/file", "b/twin",
        "content", "content", "vcap 640 1", "vcap 640 1",
    ]  # fmt: skip
    back = tmp_path / "back"
    await client.call(COPY_OUT, {1: handle, 2: b"/tmp/b/", 3: str(back).encode(), 4: b"1234:1235"})
    assert sorted(str(path.relative_to(back)) for path in back.rglob("*")) == [
        "link", "renamed", "sub", "sub/file", "twin",
    ]  # fmt: skip
    seen = (back / "sub/file").stat()
    assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o7777) == (1234, 1235, 0o640)
    await client.call(COPY_OUT, {1: handle, 2: b"/tmp/b/twin", 3: str(tmp_path / "one").encode()})
    assert (tmp_path / "one").read_text() == "content\n"
    assert (tmp_path / "one").stat().st_uid == 0
    await client.call(COPY_OUT, {1: handle, 2: b"/tmp/b", 3: str(tmp_path / "under").encode()})
    assert (tmp_path / "under/b/twin").read_text() == "content\n"
    for path, place, text in (
        (b"/nowhere", b"/tmp/x", "src_path: /nowhere does not exist on the host"),
        (str(tree).encode(), b"/proc/nothing", "dst_path: "),
    ):
        with pytest.raises(ServerError, match=text):
            await client.call(COPY_IN, {1: handle, 2: path, 3: place})
    with pytest.raises(ServerError, match="copy: tar: "):
        await client.call(COPY_OUT, {1: handle, 2: b"/nowhere", 3: str(tmp_path / "none").encode()})


async def test_a_create_needs_no_field(client: Client) -> None:
    assert (await client.call(CREATE)).kind == CREATE
