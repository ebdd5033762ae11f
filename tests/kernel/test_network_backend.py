"""The nftables back end alone: without its library, refused batches, atomic transactions, and what it keeps in memory."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import testhost

from container.aio import SilentLog
from container.network import FirewallError, NetworkOptions, Networks
from container.network.firewall.nftables import Nftables

pytestmark = pytest.mark.kernel


@pytest_asyncio.fixture
async def firewall() -> AsyncIterator[Nftables]:
    opened = Nftables("garrison")
    yield opened
    await opened.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nftables")]


async def test_a_library_that_is_not_there_is_named_with_its_package() -> None:
    """Each time it is asked, and closing is fine."""
    firewall = Nftables("garrison", "libnftables.so.absent")
    for _ in range(2):
        with pytest.raises(
            FirewallError, match=r"libnftables.so.absent cannot be loaded .* install .*libnftables1"
        ):
            await firewall.apply("list tables\n")
    await firewall.close()


async def test_a_refusal_says_where_and_why_and_nothing_of_it_holds(firewall: Nftables) -> None:
    """The reason is the kernel's; the lines before the wrong one are rolled back."""
    with pytest.raises(FirewallError) as refused:
        await firewall.apply("add table inet probe\nadd element inet probe absent { 1 }\n")

    assert str(refused.value) == (
        "nftables: No such file or directory (in 'add table inet probe' and 1 more lines)"
    )
    assert "probe" not in testhost.run("nft", "list", "tables")


@pytest.mark.parametrize("text", ["", "\n", "# a remark\n"])
async def test_nothing_to_do_is_fine(firewall: Nftables, text: str) -> None:
    """A change may turn out to be none."""
    await firewall.apply(text)


async def test_what_is_not_text_of_nft_is_refused(firewall: Nftables) -> None:
    """Also several at once, of which each gets its own answer."""
    results = await asyncio.gather(
        *(
            firewall.apply(text)
            for text in ("no such verb\n", "add table inet a; delete table inet a\n", "{\n")
        ),
        return_exceptions=True,
    )

    assert [type(one) for one in results] == [FirewallError, type(None), FirewallError]


def held() -> tuple[set[str], set[str]]:
    """Descriptors by what they are, and threads by name but for those of the loop's own pool, which stay for its life."""
    found = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if os.path.lexists(path)}
    names = {thread.name for thread in threading.enumerate()}
    return found, {name for name in names if not name.startswith("asyncio_")}


async def test_a_network_that_was_closed_holds_nothing(tmp_path: Path) -> None:
    """No socket, no thread; the tables stay unless told."""
    before = held()
    for remove_tables in (False, True):
        settings = NetworkOptions(forwarding_file=tmp_path / "forwarding")
        networks = await Networks.open(settings, SilentLog())
        await networks.close(remove_tables=remove_tables)
        assert ("table inet garrison" in testhost.run("nft", "list", "tables")) is not remove_tables

    assert held() == before
    assert Path("/proc/sys/net/ipv4/conf/uplink0/forwarding").read_text() == "0\n"


BAD_SETTINGS = {
    "an address that is none": (NetworkOptions(dns_servers=("resolver",)), FirewallError),
    "a back end that is none": (NetworkOptions(firewall="ipfw"), FirewallError),
    "a pool that is none": (NetworkOptions(pool_network="10.254.0.0/33"), ValueError),
}


@pytest.mark.parametrize("what", BAD_SETTINGS)
async def test_a_network_that_cannot_be_opened_holds_nothing(what: str) -> None:
    """Neither sockets nor half of a table."""
    settings, error = BAD_SETTINGS[what]
    before = held()

    with pytest.raises(error):
        await Networks.open(settings, SilentLog())

    assert held() == before
