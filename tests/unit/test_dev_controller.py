"""The development controller's decisions: placement, and what to start and stop. Pure."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.dev.messages import staging_message, start_message
from agent.dev.placement import ADVERT_TIMEOUT_S, AdvertMessage, HostPool
from agent.dev.pushes import IDLE_S, Changes, Pushes, PushRefused
from agent.dev.records import (
    START_GRACE_S,
    App,
    AppStore,
    HostReport,
    InstanceReport,
    Observed,
    ReportedExit,
    StartOrder,
    StopOrder,
    backoff_s,
    decide,
    status,
)

pytestmark = pytest.mark.unit


def pool(*hosts: dict[str, Any]) -> HostPool:
    made = HostPool()
    for host in hosts:
        advert = {"stacks": ["debian"], "available_memory": 1000, "available_disk": 9999, **host}
        made.receive(msgspec.convert(advert, AdvertMessage), 0)
    return made


def chosen(made: HostPool, *, memory: int = 64, stack: str = "debian", app: str = "A") -> set[str | None]:
    rng = random.Random(1)
    return {made.find_host(app, stack, memory, 10, rng) for _ in range(60)}


def test_the_upper_half_by_memory_is_drawn_from() -> None:
    """Four hosts of 100 to 400 MB: only the two larger ones, about equally (as observed at the real one)."""
    made = pool(*({"id": str(size), "available_memory": size} for size in (100, 200, 300, 400)))
    rng = random.Random(7)
    drawn = Counter(made.find_host("A", "debian", 64, 10, rng) for _ in range(60))
    assert set(drawn) == {"300", "400"}
    assert min(drawn.values()) > 15


def test_what_does_not_fit_is_left_out() -> None:
    """Memory, disk and stack must fit; an advert without disk counts as enough."""
    made = pool(
        {"id": "small", "available_memory": 32},
        {"id": "full", "available_disk": 1},
        {"id": "other", "stacks": ["lucid64"]},
        {"id": "good", "available_disk": None},
    )
    assert chosen(made) == {"good"}
    assert chosen(made, stack="none") == {None}


def test_zones_and_hosts_with_fewest_instances_come_first() -> None:
    """First the zone with fewest of the app's instances, then the host with fewest."""
    made = pool(
        {"id": "a1", "placement_properties": {"zone": "a"}, "app_id_to_count": {"A": 1}},
        {"id": "a2", "placement_properties": {"zone": "a"}, "available_memory": 9000},
        {"id": "b1", "placement_properties": {"zone": "b"}, "available_memory": 100},
    )
    assert chosen(made) == {"b1"}
    assert chosen(pool({"id": "x", "app_id_to_count": {"A": 2}}, {"id": "y"})) == {"y"}


def test_a_placement_counts_before_the_next_advert() -> None:
    """Two starts in one burst go to two hosts."""
    made = pool({"id": "x"}, {"id": "y"})
    first = made.find_host("A", "debian", 64, 10, random.Random(3))
    assert first is not None
    made.note_placement(first, "A", 64)
    assert chosen(made) == {"x", "y"} - {first}


def test_old_adverts_are_forgotten() -> None:
    """A host that is silent for ten seconds gets nothing more."""
    made = pool({"id": "x"})
    made.prune(ADVERT_TIMEOUT_S + 1)
    assert chosen(made) == {None}


def test_a_stager_is_one_of_the_five_largest() -> None:
    """Of seven that fit, the two with least memory are not drawn."""
    made = pool(*({"id": str(size), "available_memory": size} for size in range(100, 800, 100)))
    rng = random.Random(5)
    assert {made.find_stager("debian", 64, 10, rng) for _ in range(80)} == {"300", "400", "500", "600", "700"}


APP = App(guid="G", name="hello", version="v1", instances=2, started=True, droplet_sha1="s")


def app(**changes: Any) -> App:
    return msgspec.structs.replace(APP, **changes)


def entry(
    index: int, instance: str, state: str = "RUNNING", version: str = "v1", at: float = 0
) -> InstanceReport:
    return InstanceReport("G", version, instance, index, state, at)


def seen(*entries: InstanceReport, now: float = 0) -> Observed:
    observed = Observed()
    observed.receive(HostReport("dea", entries), now)
    return observed


def test_missing_instances_are_started() -> None:
    """What no heartbeat shows is started; a crashed one is missing too."""
    assert decide([app()], seen(entry(0, "a"), entry(1, "b", "CRASHED")), 0) == [StartOrder("G", 1)]


def test_nothing_is_done_when_all_is_well() -> None:
    """Running and starting instances count as there."""
    assert decide([app()], seen(entry(0, "a"), entry(1, "b", "STARTING")), 0) == []


def test_a_start_under_way_is_not_repeated_until_its_grace_is_over() -> None:
    """Between the start message and the first heartbeat nothing is missing."""
    observed = seen(entry(0, "a"))
    observed.pending["G", "v1", 1] = 0
    assert decide([app()], observed, 1) == []
    observed.prune(START_GRACE_S + 1)
    observed.receive(HostReport("dea", (entry(0, "a"),)), START_GRACE_S + 1)
    assert decide([app()], observed, START_GRACE_S + 1) == [StartOrder("G", 1)]


@pytest.mark.parametrize(
    ("wanted", "entries", "stopped"),
    [
        (app(instances=1), [entry(0, "a"), entry(1, "b")], ("b",)),
        (app(started=False), [entry(0, "a"), entry(1, "b")], ("a", "b")),
        (app(instances=1), [entry(0, "old", at=1), entry(0, "new", at=2)], ("new",)),
        (app(instances=1, version="v2"), [entry(0, "old"), entry(0, "new", version="v2")], ("old",)),
    ],
    ids=["scaled down", "stopped", "duplicate", "replaced"],
)
def test_what_is_too_much_is_stopped(
    wanted: App, entries: list[InstanceReport], stopped: tuple[str, ...]
) -> None:
    """Extra indexes, stopped apps, the younger twin, and an old version whose index runs anew."""
    orders = decide([wanted], seen(*entries), 0)
    assert [o.instances for o in orders if isinstance(o, StopOrder)] == [stopped]


def test_an_unknown_app_is_stopped() -> None:
    """Instances of a deleted app go."""
    assert decide([], seen(entry(0, "a")), 0) == [StopOrder("G", ("a",), "unknown app")]


def test_an_old_version_serves_on_until_the_new_one_runs() -> None:
    """While the new instance only starts, the old one is left alone."""
    wanted = app(instances=1, version="v2")
    assert decide([wanted], seen(entry(0, "old"), entry(0, "new", "STARTING", "v2")), 0) == []


def test_a_version_being_staged_is_left_alone() -> None:
    """The host starts index 0 of a version that the controller does not know yet; the version that runs is looked after."""
    running, new = entry(0, "a"), entry(0, "x", version="v9")
    assert decide([app(instances=1)], seen(running, new), 0, {"G": "v9"}) == []
    assert decide([app(instances=1)], seen(new), 0, {"G": "v9"}) == [StartOrder("G", 0)]
    assert decide([], seen(new), 0, {"G": "v9"}) == []
    assert decide([app(instances=1)], seen(running, new), 0) == [StopOrder("G", ("x",), "replaced")]


def test_a_claim_whose_owner_was_killed_lapses(tmp_path: Path) -> None:
    """Not while a request works for it; what it had uploaded goes with it."""
    pushes = Pushes(tmp_path, AppStore(tmp_path / "apps.json"))
    first = pushes.claim("hello", Changes(), 100)
    pushes.package(first.id).write_bytes(b"zip")
    with pytest.raises(PushRefused, match="since 30 s"):
        pushes.claim("hello", Changes(), 100 + IDLE_S)
    first.requests = 1
    assert pushes.of("hello", 1000) is first
    first.requests = 0
    second = pushes.claim("hello", Changes(), 1000)
    assert second.id != first.id
    assert not pushes.package(first.id).exists()
    with pytest.raises(PushRefused, match="is over"):
        pushes.get("hello", first.id, 1000)
    pushes.end(first)
    assert pushes.get("hello", second.id, 1000) is second


def test_what_a_push_changes() -> None:
    """What it does not name stays; null is the default; variables are added and removed one by one."""
    before = app(memory_mb=64, buildpack="python", command="run", env={"A": "1", "B": "2"})
    changes = msgspec.json.decode(
        b'{"instances": 3, "buildpack": null, "set_env": {"B": "3", "C": "4"}, "unset_env": ["A", "X"]}',
        type=Changes,
    )
    after = changes.applied_to(before)
    assert (after.instances, after.memory_mb, after.buildpack, after.command) == (3, 64, None, "run")
    assert after.env == {"B": "3", "C": "4"}
    assert before.env == {"A": "1", "B": "2"}


@pytest.mark.parametrize("wrong", [{"instances": -1}, {"instances": 1001}, {"memory_mb": 0}, {"disk_mb": -5}])
def test_what_a_push_cannot_change(wrong: dict[str, int]) -> None:
    """Out of bounds is refused before anything is uploaded."""
    with pytest.raises(PushRefused) as refused:
        msgspec.convert(wrong, Changes).applied_to(app())
    assert refused.value.http_status == 400


def test_a_commit_that_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the app is as before, in memory too."""
    store = AppStore(tmp_path / "apps.json")
    store.apps["hello"] = app(name="hello")
    pushes = Pushes(tmp_path, store)
    for name in ("hello", "new"):
        push = pushes.claim(name, Changes(memory_mb=64), 0)
        pushes.droplet(push.id).write_bytes(b"droplet")
        monkeypatch.setattr(
            store, "save", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space"):
            pushes.commit(push, droplet_sha1="s")
        pushes.end(push)
    assert store.apps == {"hello": app(name="hello")}
    assert list((tmp_path / "droplets").iterdir()) == []


def test_status_knows_who_serves() -> None:
    """While the new version crashes, what still runs of the one before is counted by itself."""
    observed = seen(entry(0, "old", version="v0"), entry(1, "older", "STARTING", "v0"), now=10)
    observed.exited(ReportedExit("G", "v1", "b", 0, "CRASHED", 1, "app instance exited", 7), 10)
    row = status(app(), observed, 12)
    assert (row["state"], row["running"], row["previous_running"]) == ("crashing", 0, 1)


def test_why_no_host_takes_it() -> None:
    """What is wanted, and what the largest host has left."""
    made = pool(
        {"id": "a", "available_memory": 300, "available_disk": 50}, {"id": "b", "available_memory": 200}
    )
    assert made.why_none("debian", 512, 1024) == (
        "no host has 512 MiB of memory and 1024 MiB of disk left; "
        "the largest has 300 MiB of memory and 50 MiB of disk"
    )
    assert made.why_none("lucid64", 1, 1) == "no host has the stack 'lucid64'"
    assert pool().why_none("debian", 1, 1) == "no host has sent an advert"


def test_crashes_rest_longer_and_longer() -> None:
    """The first two restart at once, then 4 s, doubling to a minute."""
    assert [backoff_s(n) for n in (1, 2, 3, 4, 5, 9)] == [0, 0, 4, 8, 16, 60]


def test_a_crash_that_is_told_twice_counts_once() -> None:
    """Events come at least once, with the same instance."""
    observed = seen()
    told = ReportedExit("G", "v1", "a", 0, "CRASHED", 1, "app instance exited", 7)
    assert observed.exited(told, 1)
    assert not observed.exited(told, 2)
    assert observed.crashes["G", "v1", 0].count == 1


def test_status_tells_the_last_crash() -> None:
    """An app with a missing instance that crashed is `crashing`, with how and when."""
    observed = seen(entry(0, "a"), now=10)
    observed.exited(ReportedExit("G", "v1", "b", 1, "CRASHED", 1, "app instance exited", 7), 10)
    row = status(app(), observed, 12)
    assert row["state"] == "crashing"
    assert row["crash"] == {
        "index": 1, "instance": "b", "exit_status": 1, "description": "app instance exited", "seconds_ago": 2, "count": 1,
    }  # fmt: skip


def test_messages_have_the_cloud_controllers_keys(request: pytest.FixtureRequest) -> None:
    """Each key of the fixtures is in ours, and those that the agent requires are of the same type."""
    fixtures = request.config.rootpath / "tests" / "fixtures"
    ours = start_message(app(), 1, droplet_uri="http://x", version="v1", sha1="s")
    theirs = msgspec.json.decode((fixtures / "dea.start.json").read_bytes())
    assert set(theirs) == set(ours)
    for key in ("droplet", "version", "name", "uris", "index", "sha1", "limits", "env", "services"):
        assert type(ours[key]) is type(theirs[key]), key
    staging = staging_message(app(), task_id="t", version="v1", base="http://x", has_cache=False)
    theirs = msgspec.json.decode((fixtures / "staging.start.json").read_bytes())
    assert set(theirs) - set(staging) == {"accepts_http"}
    assert staging["start_message"]["sha1"] is None
    assert staging["buildpack_cache_download_uri"] is None
