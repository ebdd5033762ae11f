"""Which host ports the pool holds."""

from __future__ import annotations

import pytest

from container.network.ports import NoPorts, pool_range

pytestmark = pytest.mark.unit
EPHEMERAL = "32768\t60999\n"


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [
        (0, 0, range(61000, 65001)),
        (0, 2000, range(61000, 63000)),
        (0, 10, range(61000, 61010)),
        (20_000, 100, range(20_000, 20_100)),
        (20_000, 0, range(20_000, 65_001)),
        (65_000, 10_000, range(65_000, 65_536)),
    ],
)
def test_the_pool_is_what_was_configured_or_lies_above_the_ephemeral_ports(
    first: int, count: int, expected: range
) -> None:
    """Zero is not given: the host's own clients take theirs below."""
    assert pool_range(first, count, EPHEMERAL) == expected


def test_too_few_ports_are_refused_at_the_start() -> None:
    """As Warden does (B.5); a configured pool may be as small as one likes."""
    with pytest.raises(NoPorts, match="1000 free above the ephemeral ones, which end at 64500"):
        pool_range(0, 0, "1024 64500")
    assert pool_range(64_990, 5, "1024 64500") == range(64_990, 64_995)
