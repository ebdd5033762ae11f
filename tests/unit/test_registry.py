"""What the registry counts, and which crashes are kept."""

from __future__ import annotations

import random
from itertools import count

import pytest

from agent.bus.messages import AppLimits, Filter, StartMessage
from agent.instances.crashes import KEPT_PER_APP, to_keep
from agent.instances.instance import OUT_OF_MEMORY, Exit, Instance, State
from agent.instances.registry import Registry, matches
from agent.resources import Claim, claim_of

pytestmark = pytest.mark.unit
_ids = count()


def instance(app: str = "app", index: int = 0, *, state: State = State.RUNNING, mem: int = 64) -> Instance:
    message = StartMessage(app, "v", "name", index, AppLimits(mem, 128, 64), (), "default")
    return Instance(id=f"i{next(_ids)}", private_id="p", message=message, version="v", uris=(), state=state)


def crash(at_s: int, index: int = 0, description: str = "app instance exited") -> Instance:
    one = instance(index=index, state=State.CRASHED)
    one.crashed_at_s, one.state_since_s, one.exit = at_s, float(at_s), Exit(1, description)
    return one


def test_what_all_hold_together_is_right_after_whatever_happens() -> None:
    """Against the sum over all, for a thousand random changes."""
    rng = random.Random(7)
    registry, known = Registry(), list[Instance]()
    for _ in range(1000):
        match rng.randrange(4):
            case 0:
                known.append(instance(rng.choice("abc"), mem=rng.randrange(1, 100)))
                registry.add(known[-1])
            case 1 if known:
                registry.remove(one := rng.choice(known))
                registry.remove(one)  # idempotent
                known.remove(one)
            case 2 if known:
                one = rng.choice(known)
                one.state = rng.choice(list(State))
                one.kept_bytes = rng.randrange(1 << 22)
                registry.settle(one)
            case 3 if known:
                registry.rename(rng.choice(known), f"i{next(_ids)}")
        claims = [claim_of(one) for one in known]
        assert registry.held == Claim(
            sum(one.memory_mb for one in claims), sum(one.disk_mb for one in claims)
        )
        assert registry.counts() == {
            app: found for app in "abc" if (found := sum(one.app == app for one in known))
        }
        assert all(set(registry.of_app(app)) == {one for one in known if one.app == app} for app in "abc")


def test_what_is_no_longer_there_changes_nothing() -> None:
    """The life of an instance may end after it was forgotten."""
    registry, one = Registry(), instance()
    registry.add(one)
    registry.remove(one)
    registry.settle(one)
    assert registry.held == Claim(0, 0)


def test_the_newest_crash_of_each_index_is_kept() -> None:
    """One index that crashes in a loop takes the others' records away no more."""
    old, new, other = crash(1), crash(3), crash(2, index=1)
    assert to_keep([old, new, other]) == {new, other}


def test_a_crash_for_want_of_memory_is_not_erased_by_a_later_exit() -> None:
    """Of each index the newest such one stays beside the newest."""
    older, oom, later = crash(1, description=OUT_OF_MEMORY), crash(2, description=OUT_OF_MEMORY), crash(3)
    assert to_keep([older, oom, later]) == {oom, later}


def test_at_most_ten_are_kept_of_an_app() -> None:
    """The newest of all, then those for want of memory, then the newest of the others."""
    ooms = [crash(at, index=at, description=OUT_OF_MEMORY) for at in range(3)]
    exits = [crash(10 + at, index=10 + at) for at in range(20)]
    kept = to_keep([*ooms, *exits])
    assert len(kept) == KEPT_PER_APP == 10
    assert kept == {*ooms, *exits[-7:]}
    assert exits[-1] in to_keep([*(crash(at, at, OUT_OF_MEMORY) for at in range(15)), exits[-1]])
    assert to_keep([]) == frozenset()


#: What a filter asks for, and whether an instance of version "v", id "i1", index 2, RUNNING is meant.
FILTERS = {
    "the app alone": ({}, True),
    "its version": ({"version": "v"}, True),
    "another version": ({"version": "w"}, False),
    "an empty version": ({"version": ""}, True),
    "its id": ({"instances": ("i0", "i1")}, True),
    "its id by the other name": ({"instance_ids": ("i1",)}, True),
    "other ids": ({"instances": ("i0",)}, False),
    "its index": ({"indices": (1, 2)}, True),
    "another index": ({"indices": (0,)}, False),
    "no index at all": ({"indices": ()}, True),
    "its state": ({"states": ("RUNNING", "CRASHED")}, True),
    "its state in small letters": ({"states": ("running",)}, True),
    "another state": ({"states": ("CRASHED",)}, False),
    "one that holds and one that does not": ({"version": "v", "indices": (0,)}, False),
    "all that hold": ({"version": "v", "instances": ("i1",), "indices": (2,), "states": ("RUNNING",)}, True),
}  # fmt: skip


@pytest.mark.parametrize("case", FILTERS)
def test_every_filter_that_is_there_must_hold(case: str) -> None:
    """One that is absent or empty excludes nobody."""
    wanted, meant = FILTERS[case]
    one = instance(index=2)
    one.id = "i1"
    assert matches(one, Filter("app", **wanted)) is meant  # type: ignore[arg-type]  # a table of keywords
