"""The nftables back end by itself: the library that is not there, refusals, whole transactions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import testhost

from container.network import FirewallError
from container.network.firewall.nftables import Nftables

pytestmark = pytest.mark.kernel


@pytest_asyncio.fixture
async def firewall() -> AsyncIterator[Nftables]:
    opened = Nftables()
    yield opened
    await opened.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nftables")]


async def test_a_library_that_is_not_there_is_named_with_its_package() -> None:
    """Each time it is asked, and closing is fine."""
    firewall = Nftables("libnftables.so.absent")
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
