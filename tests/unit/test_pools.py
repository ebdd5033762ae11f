"""Leases and which ids are refused."""

from __future__ import annotations

import pytest

from container.pools import (
    AddressLease,
    IdLease,
    IdSource,
    LeasePool,
    NoLease,
    address_leases,
    encode_id,
    id_leases,
)
from container.users import IdsTaken, check_ids_free, host_id, vcap_host_id

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_what_was_freed_first_is_given_out_first() -> None:
    """A queue: an address is not used again while others have rested longer."""
    pool = LeasePool("address", "abc", now_s=Clock())
    first, second = pool.take(), pool.take()
    pool.give_back(second)
    pool.give_back(first)

    assert [pool.take(), pool.take(), pool.take()] == ["c", second, first]


def test_a_lease_rests_before_it_is_given_out_again() -> None:
    """Packets of the former owner may still be on the way (docs/network.md, "Addresses and ports")."""
    clock = Clock()
    pool = LeasePool("address", "a", rest_s=5.0, now_s=clock)
    pool.give_back(pool.take())

    with pytest.raises(NoLease) as refused:
        pool.take()
    clock.now_s += 5.0

    assert refused.value.kind == "address"
    assert pool.take() == "a"


def test_giving_back_twice_or_what_is_foreign_changes_nothing() -> None:
    """Undo steps may be repeated."""
    pool = LeasePool("ids", "a", now_s=Clock())
    lease = pool.take()
    pool.give_back(lease)
    pool.give_back(lease)
    pool.give_back("z")

    assert pool.take() == "a"
    with pytest.raises(NoLease):
        pool.take()


def test_a_claimed_lease_is_taken() -> None:
    """Recovery takes what a snapshot names, and only that."""
    pool = LeasePool("ids", "ab", now_s=Clock())

    assert pool.claim("b")
    assert not pool.claim("b")
    assert not pool.claim("foreign")
    assert pool.take() == "a"
    assert pool.in_use == {"a", "b"}


def test_addresses_of_a_pool() -> None:
    """Each /30: the host's end is .1, the container's .2 (docs/network.md, "Addresses and ports")."""
    leases = address_leases("10.254.0.0/29")

    assert leases == [
        AddressLease("10.254.0.0/30", "10.254.0.1", "10.254.0.2"),
        AddressLease("10.254.0.4/30", "10.254.0.5", "10.254.0.6"),
    ]
    assert len(address_leases("10.254.0.0/16")) == 16384
    with pytest.raises(ValueError, match="/30 or wider"):
        address_leases("10.0.0.0/31")


def test_id_ranges_do_not_overlap_and_fit() -> None:
    """65,536 each; the numbers end at 32 bits."""
    assert id_leases(1_000_000_000, 2) == [IdLease(1_000_000_000), IdLease(1_000_065_536)]
    with pytest.raises(ValueError, match="4294967294"):
        id_leases(4_294_900_000, 2)
    assert (host_id(1000, 0), vcap_host_id(1000)) == (1000, 3000)


def test_ids_are_eleven_characters_that_grow() -> None:
    """An interface name of 15 has room for just that; no id is given twice."""
    source = IdSource(1_700_000_000_000_000)
    ids = [source.take() for _ in range(3)]

    assert encode_id(0) == "0" * 11
    assert encode_id(2**55 - 1) == "v" * 11
    assert ids == sorted(set(ids))
    assert {len(one) for one in ids} == {11}


@pytest.mark.parametrize(
    ("passwd", "subuid", "refused"),
    [
        ("root:x:0:0:root:/root:/bin/sh\n", "", False),
        ("big:x:1000065000:100::/:/bin/sh\n", "", True),
        ("big:x:100:1000131071::/:/bin/sh\n", "", True),
        ("after:x:1000131072:1::/:/bin/sh\n", "", False),
        ("", "user:100000:65536\n", False),
        ("", "user:999999999:2\n", True),
        ("", "user:1000131071:1\n", True),
        ("", "user:1000131072:5\n", False),
        ("broken", "alsobroken:x\n", False),
    ],
)
def test_id_ranges_of_others_are_refused(passwd: str, subuid: str, refused: bool) -> None:
    """A container's root must not be somebody of the host."""
    if refused:
        with pytest.raises(IdsTaken):
            check_ids_free(1_000_000_000, 2, passwd=passwd, subuid=subuid)
    else:
        check_ids_free(1_000_000_000, 2, passwd=passwd, subuid=subuid)
