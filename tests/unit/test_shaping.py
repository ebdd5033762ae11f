"""A bandwidth limit as a value, as the options of a tbf, and back."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from container import Bandwidth, ContainerSpec, Limits, SpecError
from container.network.netlink import attributes
from container.network.shaping import bandwidth_of, least_burst_bytes, tbf_options
from container.parts import ContainerState, Info
from container.warden.limits import NO_BANDWIDTH, bandwidth_stat
from container.warden.messages import BandwidthStat

pytestmark = pytest.mark.unit

MTU = 1500
PARMS, RATE64, BURST = 1, 4, 6


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ((0, 2000), "rate_bytes_s"),
        ((-1, 2000), "rate_bytes_s"),
        ((2**64, 2000), "rate_bytes_s"),
        ((1, 0), "burst_bytes"),
        ((1, 2**32), "burst_bytes"),
    ],
)
def test_a_figure_that_the_kernel_cannot_hold_is_refused(values: tuple[int, int], field: str) -> None:
    """By its name, with what was expected."""
    with pytest.raises(SpecError, match=rf"^bandwidth\.{field}: expected 1 to \d+, got "):
        Bandwidth(*values)


def test_a_container_without_a_network_has_no_bandwidth() -> None:
    with pytest.raises(
        SpecError, match="network: ports, egress rules, an address and a bandwidth need a network"
    ):
        ContainerSpec((Path("/stack"),), limits=Limits(bandwidth=Bandwidth(1000, 2000)), network=False)


def test_limits_of_an_older_snapshot_have_none() -> None:
    """And what is written is read."""
    limits = Limits(bandwidth=Bandwidth(1000, 2000))
    assert msgspec.json.decode(b'{"memory_bytes": 5}', type=Limits) == Limits(memory_bytes=5)
    assert msgspec.json.decode(msgspec.json.encode(limits), type=Limits) == limits


@pytest.mark.parametrize(
    ("rate", "burst", "limit"),
    [
        (1_000_000, 100_000, 200_000),  # a tenth of a second waits
        (1000, 2000, 2000 + 16 * 1514),  # at least sixteen packets
        (2**32, 2**32 - 1, 2**32 - 1),
    ],
)
def test_the_options_of_a_tbf(rate: int, burst: int, limit: int) -> None:
    """The burst in bytes; the rate in 64 bits where 32 do not hold it; a queue beside the burst."""
    found = attributes(tbf_options(Bandwidth(rate, burst), MTU))
    link_layer, rate32, limit_bytes = struct.unpack_from("=xB6xI12xI", found[PARMS])

    assert len(found[PARMS]) == 36
    assert (link_layer, rate32, limit_bytes) == (1, min(rate, 2**32 - 1), limit)
    assert struct.unpack("=I", found[BURST]) == (burst,)
    assert (RATE64 in found) == (rate > 2**32 - 1)
    assert least_burst_bytes(MTU) == 1514


@pytest.mark.parametrize("rate", [1, 1000, 1_000_000, 2**32 - 1, 2**40])
@pytest.mark.parametrize("burst", [1514, 100_000, 2**32 - 1])
def test_what_was_asked_for_is_known_again(rate: int, burst: int) -> None:
    """Also where the ticks do not fit into what the kernel shows."""
    asked = Bandwidth(rate, burst)
    assert bandwidth_of(shown(asked), asked) == asked


def test_what_others_have_set_is_computed() -> None:
    """To within the bytes of one tick; the rate is exact."""
    asked = Bandwidth(1_000_000, 100_000)
    for theirs in (Bandwidth(1_000_000, 50_000), Bandwidth(2_000_000, 200_000), Bandwidth(2**33, 2**24)):
        found = bandwidth_of(shown(theirs), asked)
        assert found.rate_bytes_s == theirs.rate_bytes_s
        assert abs(found.burst_bytes - theirs.burst_bytes) <= 1 + theirs.rate_bytes_s * 64 // 10**9
        assert bandwidth_of(shown(theirs), None) == found


def shown(bandwidth: Bandwidth) -> bytes:
    """As the kernel dumps it: without the burst in bytes, ticks of 32 bits."""
    options = tbf_options(bandwidth, MTU)
    ticks = bandwidth.burst_bytes * 10**9 // bandwidth.rate_bytes_s // 64 % 2**32
    end = options.index(struct.pack("=HHI", 8, BURST, bandwidth.burst_bytes))
    return options[:32] + struct.pack("=I", ticks) + options[36:end]


def test_warden_shows_the_burst_that_was_asked_for_while_its_limit_holds() -> None:
    """A burst below one packet cannot be in force; what others have set is shown as it is."""
    limit = Bandwidth(100_000, 1514)
    info = Info(ContainerState.ACTIVE, (), (), 0, None, {}, 0, 0, 0, 0, 0, 0, 0)
    held = replace(info, bandwidth_in=limit, bandwidth_out=limit)
    none = NO_BANDWIDTH

    assert bandwidth_stat(info, None, None) == BandwidthStat(none, none, none, none)
    assert bandwidth_stat(held, limit, None) == BandwidthStat(100_000, 1514, 100_000, 1514)
    assert bandwidth_stat(held, limit, 1000) == BandwidthStat(100_000, 1000, 100_000, 1000)
    theirs = replace(held, bandwidth_out=Bandwidth(5000, 3000))
    assert bandwidth_stat(theirs, limit, 1000) == BandwidthStat(100_000, 1000, 5000, 3000)
