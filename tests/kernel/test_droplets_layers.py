"""Layers of droplets, downloaded over real HTTP, unpacked in the jail and checked: a layer is complete or not there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from archive_kit import END, FINE, REFUSED, directory, file, packed, tree_of
from droplets_kit import MIB, Peer, half_made, layers_in, peer, sha1, until

from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.layers import LayerError, Layers
from agent.droplets.transfer import TransferError

pytestmark = pytest.mark.kernel

DROPLET = packed(
    directory(b"app") + file(b"app/run", b"#!/bin/sh\n", mode=0o755) + file(b"logs/log", b"") + END
)
LIMIT_BYTES = 64 * MIB


@pytest_asyncio.fixture
async def controller() -> AsyncIterator[Peer]:
    async with peer() as found:
        yield found


@pytest_asyncio.fixture
async def layers(base_dir: Path) -> AsyncIterator[Layers]:
    async with layers_in(base_dir) as (found, _):
        yield found


class Gate:
    """A handler that holds its answer back until the test lets it go on."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.opened = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(self.data))})
        await response.prepare(request)
        await response.write(self.data[:100])
        await self.opened.wait()
        await response.write(self.data[100:])
        return response


async def test_a_droplet_becomes_a_layer(layers: Layers, controller: Peer, base_dir: Path) -> None:
    """Under its checksum, owned by vcap, with a record; asked for again it is not fetched again."""
    digest, url = controller.serve(DROPLET)

    layer = await layers.ensure(digest, url, LIMIT_BYTES)
    again = await layers.ensure(digest, None, LIMIT_BYTES)

    assert layer is again is layers.known(digest)
    assert (layer.path, layer.bytes) == (base_dir / "layers" / digest, 10)
    assert tree_of(layer.path) == {
        "app": "directory 755",
        "app/run": "file 755 #!/bin/sh\n",
        "logs": "directory 755",
        "logs/log": "file 644 ",
    }
    assert {path.stat().st_uid for path in (layer.path, *layer.path.rglob("*"))} == {2000}
    assert controller.count(f"/{digest}") == 1


async def test_hostile_droplets_leave_nothing(layers: Layers, controller: Peer, base_dir: Path) -> None:
    """Each is refused with its own reason; no tree, no record, no worker."""
    hostile = {name: one for name, one in REFUSED.items() if not one.own_bounds}

    said = await asyncio.gather(
        *(layers.ensure(*controller.serve(one.data), LIMIT_BYTES) for one in hostile.values()),
        return_exceptions=True,
    )

    wrong = {
        name: error
        for (name, one), error in zip(hostile.items(), said, strict=True)
        if not isinstance(error, ArchiveError) or one.why not in str(error)
    }
    assert wrong == {}
    assert os.listdir(base_dir / "layers") == []


async def test_odd_droplets_are_fine(layers: Layers, controller: Peer) -> None:
    """Unpacked by nobody's id as by root: also what its owner may not read."""
    made = await asyncio.gather(
        *(layers.ensure(*controller.serve(one.data), LIMIT_BYTES) for one in FINE.values())
    )

    assert {name: tree_of(layer.path) for name, layer in zip(FINE, made, strict=True)} == {
        name: one.tree for name, one in FINE.items()
    }
    inside = [path for layer in made for path in (layer.path, *layer.path.rglob("*"))]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in inside} == {(2000, 2000)}
    assert not [path for path in inside if os.listxattr(path, follow_symlinks=False)]


async def test_a_droplet_larger_than_its_limit_is_refused(layers: Layers, controller: Peer) -> None:
    """Whether its header says so or its contents come to it."""
    digest, url = controller.serve(packed(file(b"a", bytes(MIB + 1)) + END))

    with pytest.raises(ArchiveError, match="more than 1048576 bytes"):
        await layers.ensure(digest, url, MIB)


async def test_another_checksum_is_no_layer(layers: Layers, controller: Peer, base_dir: Path) -> None:
    """A whole and harmless archive, but not the one that was asked for."""
    _, url = controller.serve(DROPLET)
    asked = sha1(b"another")

    with pytest.raises(LayerError, match="Error downloading: SHA1 mismatch"):
        await layers.ensure(asked, url, LIMIT_BYTES)

    assert os.listdir(base_dir / "layers") == []


@pytest.mark.parametrize("asked", ["", "../../etc", "A" * 40, "0" * 39, "0" * 40 + "\n", "0" * 41])
async def test_what_is_no_checksum_names_no_layer(asked: str, layers: Layers) -> None:
    """It would be a path otherwise."""
    with pytest.raises(LayerError, match="expected 40 hexadecimal digits"):
        await layers.ensure(asked, "http://127.0.0.1:1/", LIMIT_BYTES)


async def test_a_droplet_without_an_address_is_an_error(layers: Layers) -> None:
    """Unless it is here already."""
    with pytest.raises(LayerError, match="executableUri"):
        await layers.ensure("0" * 40, None, LIMIT_BYTES)


async def test_many_waiters_share_one_download(layers: Layers, controller: Peer) -> None:
    """And one that fails fails for all, once; the next one tries anew."""
    gate = Gate(DROPLET)
    url = controller.handle("/d", gate)
    waiters = [asyncio.create_task(layers.ensure(sha1(DROPLET), url, LIMIT_BYTES)) for _ in range(20)]
    await until(lambda: controller.count("/d") == 1)

    gate.opened.set()
    found = await asyncio.gather(*waiters)

    assert {layer.path for layer in found} == {found[0].path}
    assert controller.count("/d") == 1
    missing = [layers.ensure("0" * 40, f"{controller.base_url}/none", LIMIT_BYTES) for _ in range(5)]
    errors = await asyncio.gather(*missing, return_exceptions=True)
    assert {str(error) for error in errors} == {"Error downloading: HTTP status: 404"}
    assert controller.count("/none") == 1


async def test_the_end_of_one_waiter_is_not_the_others(layers: Layers, controller: Peer) -> None:
    """A stop in the middle of a start costs that start alone."""
    gate = Gate(DROPLET)
    url = controller.handle("/d", gate)
    one, other = (asyncio.create_task(layers.ensure(sha1(DROPLET), url, LIMIT_BYTES)) for _ in range(2))
    await until(lambda: controller.count("/d") == 1)

    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    gate.opened.set()

    assert (await other).sha1 == sha1(DROPLET)
    assert one.cancelled()


async def test_the_last_waiter_takes_the_download_along(
    layers: Layers, controller: Peer, base_dir: Path
) -> None:
    """Nothing goes on for nobody; who asks right then gets a download of its own, not the end of the old one."""
    gate = Gate(DROPLET)
    url = controller.handle("/d", gate)
    last = asyncio.create_task(layers.ensure(sha1(DROPLET), url, LIMIT_BYTES))
    await until(lambda: any((base_dir / "layers").iterdir()))

    last.cancel()
    await asyncio.sleep(0)  # it has heard of its end; the work has not ended yet
    gate.opened.set()
    layer = await layers.ensure(sha1(DROPLET), url, LIMIT_BYTES)

    assert last.cancelled()
    assert layer.path.is_dir()
    await until(lambda: half_made(base_dir) == [])


async def test_layers_that_are_closed_end_what_is_being_made(base_dir: Path, controller: Peer) -> None:
    """The end of the block checks that nothing half-made stays."""
    url = controller.handle("/d", Gate(DROPLET))
    async with layers_in(base_dir) as (layers, _):
        waiter = asyncio.create_task(layers.ensure(sha1(DROPLET), url, LIMIT_BYTES))
        await until(lambda: any((base_dir / "layers").iterdir()))

    assert (await asyncio.gather(waiter, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_a_layer_in_use_is_not_evicted(layers: Layers, controller: Peer, base_dir: Path) -> None:
    """Nor one that somebody wants kept; any other goes, from the disk too."""
    used, kept, idle = [controller.serve(packed(file(name, name) + END)) for name in (b"1", b"2", b"3")]
    for digest, url in (used, kept, idle):
        await layers.ensure(digest, url, LIMIT_BYTES)

    with layers.use(used[0]), layers.use(used[0]):
        gone = await layers.sweep(keep={kept[0]})

    assert gone == (idle[0],)
    assert layers.known(idle[0]) is None
    await until(lambda: half_made(base_dir) == [])
    assert set(os.listdir(base_dir / "layers")) == {
        name for digest, _ in (used, kept) for name in (digest, f"{digest}.json")
    }
    assert set(await layers.sweep(keep=())) == {used[0], kept[0]}


async def test_a_staged_tree_is_adopted(layers: Layers, controller: Peer, base_dir: Path) -> None:
    """Stage here, run here: no download. A second tree of the same droplet goes to the trash."""
    digest, url = controller.serve(DROPLET)
    for number in range(2):
        tree = base_dir / f"tree{number}"
        (tree / "app").mkdir(parents=True)
        layer = await layers.adopt(tree, digest, size_bytes=7, files=1)
        assert not tree.exists()

    assert layer is await layers.ensure(digest, url, LIMIT_BYTES)
    assert controller.requests == []


async def test_a_tree_that_is_adopted_while_it_is_fetched_wins(
    layers: Layers, controller: Peer, base_dir: Path
) -> None:
    """The slower one finds it there and gives way."""
    gate = Gate(DROPLET)
    url = controller.handle("/d", gate)
    fetching = asyncio.create_task(layers.ensure(sha1(DROPLET), url, LIMIT_BYTES))
    await until(lambda: controller.count("/d") == 1)
    (base_dir / "tree").mkdir()

    layer = await layers.adopt(base_dir / "tree", sha1(DROPLET), size_bytes=0, files=0)
    gate.opened.set()

    assert await fetching is layer


async def test_a_package_that_is_refused_leaves_no_tree(layers: Layers, base_dir: Path) -> None:
    """As with droplets."""
    (base_dir / "app.zip").write_bytes(b"no zip")

    with pytest.raises(ArchiveError, match="not a zip"):
        await layers.import_zip(base_dir / "app.zip", base_dir / "app", Bounds(total_bytes=MIB))

    assert not (base_dir / "app").exists()


async def test_downloads_are_bounded(base_dir: Path, controller: Peer) -> None:
    """Ten apps ask, three droplets come at once."""
    gates = [Gate(packed(file(b"%d" % number, b"x") + END)) for number in range(10)]
    urls = [controller.handle(f"/{number}", gate) for number, gate in enumerate(gates)]
    async with layers_in(base_dir, concurrent=3) as (layers, _):
        asked = [
            asyncio.create_task(layers.ensure(sha1(gate.data), url, LIMIT_BYTES, owner=url))
            for gate, url in zip(gates, urls, strict=True)
        ]
        await until(lambda: controller.at_once == 3)
        for gate in gates:
            gate.opened.set()
        await asyncio.gather(*asked)

    assert controller.most_at_once == 3


async def test_who_waits_to_download_costs_no_process(base_dir: Path, controller: Peer) -> None:
    """A host that is given hundreds of apps at once has as many unpacking workers as downloads."""
    gates = [Gate(packed(file(b"%d" % number, b"x") + END)) for number in range(6)]
    urls = [controller.handle(f"/{number}", gate) for number, gate in enumerate(gates)]
    async with layers_in(base_dir, concurrent=2) as (layers, _):
        asked = [
            asyncio.create_task(layers.ensure(sha1(gate.data), url, LIMIT_BYTES, owner=url))
            for gate, url in zip(gates, urls, strict=True)
        ]
        await until(lambda: controller.at_once == 2)
        assert len(os.listdir(base_dir / "layers")) == 2  # each worker's tree
        for gate in gates:
            gate.opened.set()
        await asyncio.gather(*asked)


async def test_a_full_disk_ends_a_download(base_dir: Path, controller: Peer) -> None:
    """At the low-water mark a new layer is refused while it is being written."""
    digest, url = controller.serve(DROPLET)
    async with layers_in(base_dir, low_water_bytes=1 << 60) as (layers, _):
        with pytest.raises(ArchiveError, match="low-water mark"):
            await layers.ensure(digest, url, LIMIT_BYTES)


async def test_an_error_of_the_way_is_the_waiters(layers: Layers, controller: Peer, base_dir: Path) -> None:
    """A server that goes away in the middle: no tree, and the worker is gone too."""

    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100000"})
        await response.prepare(request)
        await response.write(DROPLET)
        assert request.transport is not None
        request.transport.abort()
        return response

    url = controller.handle("/d", break_off)

    with pytest.raises(TransferError, match="Response status: unknown, Error: ClientPayloadError"):
        await layers.ensure(sha1(DROPLET), url, LIMIT_BYTES)

    assert os.listdir(base_dir / "layers") == []
