"""What a pressure file says, and which hard limits of processor time are none."""

from __future__ import annotations

import pytest

from container import CpuCap, SpecError
from container.cgroups.figures import Pressure, Throttling, parse_pressure, parse_throttling

pytestmark = pytest.mark.unit

SOME = "some avg10=1.50 avg60=0.25 avg300=0.00 total=12345\n"
FULL = "full avg10=0.10 avg60=0.00 avg300=0.00 total=77\n"


@pytest.mark.parametrize(
    ("text", "pressure"),
    [
        (SOME + FULL, Pressure((1.5, 0.25, 0.0), 12345, (0.1, 0.0, 0.0), 77)),
        (SOME, Pressure((1.5, 0.25, 0.0), 12345)),  # "full" of the processor is missing on older kernels
        ("", Pressure()),
        ("some avg10=x avg60=0 avg300=0 total=1\n" + FULL, Pressure(full=(0.1, 0.0, 0.0), full_us=77)),
        ("some avg10=1.0 total=1\nother words here\n", Pressure()),
    ],
)
def test_a_pressure_file_is_read_line_by_line(text: str, pressure: Pressure) -> None:
    assert parse_pressure(text) == pressure


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ((999,), "quota_us"),
        ((2**44 + 1,), "quota_us"),
        ((1000, 999), "period_us"),
        ((1000, 1_000_001), "period_us"),
        ((1000, 1000, -1), "burst_us"),
        ((1000, 1000, 1001), "burst_us"),
    ],
)
def test_a_cap_that_no_kernel_takes_is_refused(values: tuple[int, ...], field: str) -> None:
    with pytest.raises(SpecError, match=rf"cpu_cap\.{field}"):
        CpuCap(*values)
    CpuCap(1000, 1000, 1000)


@pytest.mark.parametrize(
    ("stat", "throttling"),
    [
        ({}, None),
        ({"usage_usec": 5}, None),  # the controller is not enabled, or the kernel has no hard limit
        ({"nr_periods": 3, "nr_throttled": 2, "throttled_time": 77}, Throttling(3, 2, 77)),
        (
            {"nr_periods": 3, "nr_throttled": 2, "throttled_usec": 77, "nr_bursts": 1, "burst_usec": 9},
            Throttling(3, 2, 77_000, 1, 9_000),
        ),
        (
            {"nr_periods": 3, "nr_throttled": 0, "throttled_time": 0, "nr_bursts": 1, "burst_time": 9},
            Throttling(3, 0, 0, 1, 9),
        ),
    ],
)
def test_counters_of_both_versions_are_nanoseconds(
    stat: dict[str, int], throttling: Throttling | None
) -> None:
    assert parse_throttling(stat) == throttling
