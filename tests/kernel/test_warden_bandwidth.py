"""LimitBandwidth of Warden's protocol, and what Info says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from depot_kit import close_empty
from warden_client import DESTROY, INFO, LIMIT_BANDWIDTH, STOP, Client, ServerError, unpack
from warden_kit import Warden, open_warden
from warden_kit import client as client
from warden_kit import rootfs as rootfs
from warden_kit import warden as warden

from container import Bandwidth

pytestmark = pytest.mark.kernel


async def bandwidth(client: Client, handle: bytes) -> list[int]:
    """Rate and burst in, rate and burst out."""
    stat = unpack((await client.call(INFO, {1: handle}))[43])
    return [stat[number][0] for number in (1, 2, 3, 4)]


async def test_a_limit_is_set_changed_and_shown(client: Client, warden: Warden) -> None:
    """The response has what was asked for. A burst below one packet is enlarged in the kernel, and shown as asked."""
    handle = await client.create()
    for rate, burst in ((100_000, 1000), (200_000, 2000)):
        done = await client.call(LIMIT_BANDWIDTH, {1: handle, 2: rate, 3: burst})
        assert (done[1], done[2]) == (rate, burst)
        assert await bandwidth(client, handle) == [rate, burst, rate, burst]
        box = warden.depot.find(warden.depot.handles()[0])
        wanted = Bandwidth(rate, max(burst, 1514))
        info = await box.info()
        assert (info.bandwidth_in, info.bandwidth_out) == (wanted, wanted)
    await client.call(STOP, {1: handle})
    await client.call(LIMIT_BANDWIDTH, {1: handle, 2: 300_000, 3: 3000})
    assert await bandwidth(client, handle) == [300_000, 3000, 300_000, 3000]


async def test_a_rate_of_nothing_is_refused_and_named(client: Client) -> None:
    handle = await client.create()
    with pytest.raises(ServerError, match=r"bandwidth\.rate_bytes_s: expected 1 to \d+, got 0"):
        await client.call(LIMIT_BANDWIDTH, {1: handle, 2: 0, 3: 1000})
    assert await bandwidth(client, handle) == [0xFFFF_FFFF] * 4


async def test_a_restart_keeps_it(tmp_path: Path, rootfs: Path) -> None:
    """Also the burst that was asked for."""
    warden = await open_warden(tmp_path, rootfs)
    client = await warden.client()
    handle = await client.create()
    await client.call(LIMIT_BANDWIDTH, {1: handle, 2: 100_000, 3: 1000})
    await warden.close()
    await warden.depot.close()

    warden = await open_warden(tmp_path, rootfs)
    client = await warden.client()
    assert await bandwidth(client, handle) == [100_000, 1000, 100_000, 1000]
    await client.call(DESTROY, {1: handle})
    await warden.close()
    await close_empty(warden.depot)
