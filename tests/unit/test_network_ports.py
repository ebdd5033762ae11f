"""Which host ports the pool holds."""

from __future__ import annotations

import socket

import pytest

from container.network.ports import HostPorts, NoPorts, pool_range
from container.spec import PortMapping

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
    """(docs/network.md, "Addresses and ports"). A configured pool may be as small as one likes."""
    with pytest.raises(NoPorts, match="1000 free above the ephemeral ones, which end at 64500"):
        pool_range(0, 0, "1024 64500")
    assert pool_range(64_990, 5, "1024 64500") == range(64_990, 64_995)


@pytest.fixture
def unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which port is next is arithmetic; the host's own ports are left alone."""
    monkeypatch.setattr("container.network.ports._bind", lambda protocol, port: socket.socket())


@pytest.mark.usefixtures("unbound")
def test_a_port_that_rests_is_not_given_out_and_the_next_that_has_rested_is() -> None:
    """Whoever asks has a reason that this room does not know: a route that may still lead there."""
    resting = set(range(64_900, 64_904))
    ports = HostPorts(range(64_900, 64_904), rests=lambda port: port in resting)
    try:
        with pytest.raises(NoPorts, match="all 4 of 64900-64903 are in use or resting"):
            ports.take(PortMapping())
        resting -= {64_902}
        assert ports.take(PortMapping()).host_port == 64_902
        with pytest.raises(NoPorts):
            ports.take(PortMapping())
        resting.clear()
        assert [ports.take(PortMapping()).host_port for _ in range(3)] == [64_900, 64_901, 64_903]
    finally:
        ports.close()


@pytest.mark.usefixtures("unbound")
def test_a_port_that_was_given_back_rests_and_comes_last() -> None:
    """Packets to its former owner may still be on the way."""
    now_s = [100.0]
    ports = HostPorts(range(64_900, 64_902), rest_s=5.0, now_s=lambda: now_s[0])
    try:
        first = ports.take(PortMapping())
        ports.give_back(first)
        assert ports.take(PortMapping()).host_port == 64_901
        with pytest.raises(NoPorts):
            ports.take(PortMapping())
        now_s[0] += 5
        assert ports.take(PortMapping()).host_port == first.host_port
    finally:
        ports.close()
