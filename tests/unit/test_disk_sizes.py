"""How large an image is formatted, and what of it may be given: arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from container.disk.image import most_bytes, reserve_bytes
from container.disk.templates import MAX_BYTES, formatted_bytes

pytestmark = pytest.mark.unit

MIB = 1 << 20


@given(st.one_of(st.integers(MIB, 5 * MIB), st.integers(MIB, MAX_BYTES)))
@example(1_085_441)
def test_an_image_is_large_enough_and_hardly_larger(limit_bytes: int) -> None:
    """The limit, its reserve and two blocks of the file system's own fit; `df` shows five per cent more at most."""
    size = formatted_bytes(limit_bytes)

    assert size % 4096 == 0
    assert size <= 1.05 * limit_bytes
    assert most_bytes(size - 2 * 4096) >= limit_bytes


@given(st.integers(1, MIB))
def test_a_tiny_limit_fits_too(limit_bytes: int) -> None:
    """Of less than 1 MiB a few blocks are a large part."""
    assert limit_bytes < formatted_bytes(limit_bytes) <= limit_bytes + 12 * 4096


@given(st.integers(0, 1 << 41))
def test_the_most_that_may_be_given_leaves_its_own_reserve(room_bytes: int) -> None:
    """And not a block less than that: the next larger limit would not."""
    most = most_bytes(room_bytes)

    assert most == 0 or most + reserve_bytes(most) <= room_bytes
    assert most + 4096 + reserve_bytes(most + 4096) > room_bytes


def test_limits_of_one_host_share_few_templates() -> None:
    """An app's limit less its droplet is any number of bytes: 32 sizes to each doubling."""
    sizes = {formatted_bytes(limit) for limit in range(1 << 30, 1 << 31, 1_000_003)}

    assert len(sizes) <= 33
    assert sorted(sizes) == sorted(sizes, key=formatted_bytes)


def test_the_reserve_is_bounded_both_ways() -> None:
    """At least four blocks, a hundredth, and never more than 64 MiB."""
    assert [reserve_bytes(size * MIB) for size in (1, 100, 1000, 1 << 20)] == [
        16 << 10,
        MIB,
        10 * MIB,
        64 * MIB,
    ]
