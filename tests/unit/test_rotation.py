"""A pool goes on where a former manager left it: what was released last is given out last."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from test_pools import Clock

from container.pools import AddressLease, LeasePool, NoLease, address_leases
from container.rotation import Rotation

pytestmark = pytest.mark.unit
LOG = structlog.get_logger()


class Managers:
    """Each with pools of its own, one after the other on one file; their clocks differ, as after a reboot."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "rotation"
        self.wall_s = 5_000_000.0
        self.begun = 0

    def begin(self, *, rest_s: float = 0.0, entries: str = "abcde") -> tuple[LeasePool[str], Clock]:
        clock = Clock()
        self.begun += 1
        clock.now_s = 1000.0 * self.begun
        pool = LeasePool("letter", entries, rest_s=rest_s, now_s=clock)
        Rotation(self.path, LOG, wall_s=lambda: self.wall_s).attach(pool, str)
        return pool, clock


@pytest.fixture
def managers(tmp_path: Path) -> Managers:
    return Managers(tmp_path)


def taken(pool: LeasePool[str], count: int) -> str:
    return "".join(pool.take() for _ in range(count))


def test_the_next_manager_goes_on_behind_what_was_given_out_last(managers: Managers) -> None:
    """Not at the start, where the last owners have just gone."""
    pool, _ = managers.begin()
    assert taken(pool, 3) == "abc"
    for one in "cab":
        pool.give_back(one)

    again, _ = managers.begin()

    assert taken(again, 5) == "deabc"


def test_a_rest_goes_on_over_a_restart(managers: Managers) -> None:
    """For the time that is left of it, whatever the next manager's own clock says."""
    pool, _ = managers.begin(rest_s=60.0, entries="ab")
    pool.give_back(pool.take())
    managers.wall_s += 20

    again, clock = managers.begin(rest_s=60.0, entries="ab")

    assert taken(again, 1) == "b"
    with pytest.raises(NoLease):
        again.take()
    clock.now_s += 39
    with pytest.raises(NoLease):
        again.take()
    clock.now_s += 1
    assert again.take() == "a"


def test_a_clock_that_was_set_back_rests_no_longer_than_a_rest(managers: Managers) -> None:
    """A host may learn the time late."""
    pool, _ = managers.begin(rest_s=60.0, entries="a")
    pool.give_back(pool.take())
    managers.wall_s -= 1e6

    again, clock = managers.begin(rest_s=60.0, entries="a")
    clock.now_s += 60

    assert again.take() == "a"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[]", b'{"letter": {"last": 5}}', b'{"letter": {"last": "z", "resting": {"y": 1e12}}}']
)  # fmt: skip
def test_a_file_that_is_damaged_or_of_another_pool_is_no_rotation(managers: Managers, data: bytes) -> None:
    """The pool begins at its start."""
    managers.path.write_bytes(data)
    pool, _ = managers.begin()
    assert taken(pool, 5) == "abcde"


def test_a_file_that_cannot_be_written_costs_the_rotation_only(managers: Managers) -> None:
    """A full disk."""
    managers.path.with_suffix(".new").symlink_to("/dev/full")
    pool, _ = managers.begin()
    pool.give_back(pool.take())
    assert not managers.path.exists()
    assert taken(pool, 5) == "bcdea"


def test_an_address_is_known_by_its_network(tmp_path: Path) -> None:
    """As the snapshots in the depot name it."""
    path = tmp_path / "rotation"
    for expected in ("10.254.0.0/30", "10.254.0.4/30"):
        pool: LeasePool[AddressLease] = LeasePool("address", address_leases("10.254.0.0/28"), now_s=Clock())
        Rotation(path, LOG).attach(pool, lambda lease: str(lease.network))
        lease = pool.take()
        assert lease.network == expected
        pool.give_back(lease)


def test_what_a_former_manager_had_rests_as_if_released_here() -> None:
    """Recovery removes a container; its address is not the next one's at once."""
    clock = Clock()
    pool = LeasePool("letter", "ab", rest_s=5.0, now_s=clock)
    pool.rest("a")
    pool.rest("z")
    assert pool.take() == "b"
    with pytest.raises(NoLease):
        pool.take()
    clock.now_s += 5.0
    assert pool.take() == "a"


def test_what_is_not_usable_now_is_passed_over_and_keeps_its_place() -> None:
    """The caller knows of reasons that the pool does not know."""
    pool = LeasePool("letter", "abc", now_s=Clock())
    assert pool.take(lambda one: one != "a") == "b"
    pool.postpone("b")
    assert [pool.take() for _ in range(3)] == ["a", "c", "b"]
    with pytest.raises(NoLease):
        pool.take(lambda one: True)
