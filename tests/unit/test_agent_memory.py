"""The agent's memory: what is remembered comes back, what is damaged costs itself only, and writing never holds anybody up."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import old_release
import pytest
import structlog

from agent.bus.messages import AppLimits, StartMessage
from agent.instances.health import remembered
from agent.instances.instance import Exit, Instance, State
from agent.instances.registry import Registry
from agent.memory import agent as agent_memory
from agent.memory import records
from agent.memory.instances import InstanceRecords
from agent.memory.records import (
    FORMAT,
    Head,
    OneFile,
    SavedInstance,
    SavedStaging,
)
from agent.memory.store import HEAD, INSTANCES, STAGINGS, RecordStore
from agent.phases import AgentPhase
from container import PortMapping, UnknownHandle

pytestmark = pytest.mark.unit

LOG = structlog.get_logger()


def crashed() -> Instance:
    message = StartMessage(
        "app", "v1", "name", 2, AppLimits(16, 32, 64), (), "default", uris=("a.example.com",)
    )
    return Instance(
        id="i",
        private_id="p",
        message=message,
        version="v2",
        uris=("b.example.com",),
        record="r",
        state=State.CRASHED,
        state_since_s=5.5,
        started_at_s=4.5,
        handle="h",
        port=PortMapping(host_port=61001, container_port=8080),
        exit=Exit(255, "app instance exited", 9),
        crashed_at_s=5,
        exit_pending=True,
        leaving=("c.example.com",),
        health=remembered(True),
        routed=True,
    )


def saved(**changes: Any) -> SavedInstance:
    return msgspec.structs.replace(records.save_instance(crashed(), "me"), **changes)


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "db", tmp_path / "agent.id")


def db(tmp_path: Path) -> set[str]:
    return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}


# ---- records -------------------------------------------------------------------------------------------------------


def test_what_is_remembered_of_an_instance_comes_back() -> None:
    """All but its state, which depends on what is found of its container."""
    one = saved()

    assert records.decode_instance(records.encode(one)) == one
    back = records.load_instance(one)
    assert back.state is State.BORN
    assert records.save_instance(back, "me") == msgspec.structs.replace(one, state=State.BORN)


def test_a_record_of_another_release_is_taken_as_far_as_it_is_known() -> None:
    """What it lacks has a default, what it has beyond is ignored."""
    fields = json.loads(records.encode(saved()))
    for added in ("record", "agent_id", "exit_pending", "leaving", "whole", "format", "ports", "routed"):
        del fields[added]

    found = records.decode_instance(json.dumps(fields | {"hue": [1], "format": FORMAT}).encode())

    assert found == saved(record="", agent_id="", exit_pending=False, leaving=(), ports=None, routed=False)


def test_a_record_of_a_later_format_is_no_damage() -> None:
    """It is the business of the release that wrote it; its container is known all the same."""
    data = json.dumps({"format": FORMAT + 1, "handle": "h", "state": 7}).encode()

    with pytest.raises(records.Later, match="format 3"):
        records.decode_instance(data)
    assert records.handle_of(data) == "h"


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize("levels", [65, 400, 975])
def test_a_message_that_is_too_deep_by_now_ends_no_running_app(levels: int) -> None:
    """A former release took it; the part is kept that an instance needs which runs already."""
    data = records.encode(saved()).replace(b'"services":[]', b'"services":[%s]' % deep(levels))

    found = records.decode_instance(data)

    assert (found.whole, found.message.services) == (False, ())
    assert (found.id, found.uris, found.ports) == ("i", ("b.example.com",), (61001, 8080))
    assert (found.message.app, found.message.index, found.message.limits.mem) == ("app", 2, 16)
    assert records.decode_instance(records.encode(found)) == found


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b"{}", deep(100_000), b'{"format": "x"}', b"null"]
)
def test_what_is_no_record_is_one_error(data: bytes) -> None:
    """Whatever the decoder says to it."""
    with pytest.raises(records.UnreadableRecord):
        records.decode_instance(data)


@pytest.mark.parametrize("ports", [(0, 8080), (61001, 65536), (-1, -1)])
def test_a_record_with_ports_that_are_none_is_no_record(ports: tuple[int, int]) -> None:
    """It is set aside, and the copy beside the container counts; it ends no start of the agent."""
    fields = json.loads(records.encode(saved()))

    with pytest.raises(records.UnreadableRecord):
        records.decode_instance(json.dumps(fields | {"ports": ports}).encode())


# ---- files ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(store: RecordStore, tmp_path: Path) -> None:
    """Each record in a file of its own, which only root reads; a removed one is gone."""
    head, staging = (
        Head(agent_id="me", phase=AgentPhase.EVACUATING, since_s=7.5),
        SavedStaging("t", "app", "inbox"),
    )
    store.write(HEAD, "agent", records.encode(head))
    store.write(INSTANCES, "r", records.encode(saved()))
    store.write(INSTANCES, "gone", records.encode(saved()))
    store.write(INSTANCES, "gone", None)
    store.write(INSTANCES, "gone", None)
    store.write(STAGINGS, "s", records.encode(staging))

    found = store.read()

    assert (found.head, found.instances, found.stagings) == (head, {"r": saved()}, {"s": staging})
    assert found.damage == []
    files = {"db/agent.json", "db/instances/r.json", "db/stagings/s.json"}
    assert db(tmp_path) == files
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in files} == {0o600}


def test_nothing_is_remembered_at_first(store: RecordStore) -> None:
    """An agent that has never run is new, which is no damage."""
    found = store.read()
    assert (found.head, found.instances, found.damage) == (None, {}, [])


@pytest.mark.parametrize("data", [b"", b"\0" * 90, b'{"id": "i"}', deep(100_000)])
def test_a_damaged_record_costs_itself_only(store: RecordStore, tmp_path: Path, data: bytes) -> None:
    """It is set aside for somebody to look at; the others and the head are read."""
    store.write(HEAD, "agent", records.encode(Head(agent_id="me")))
    store.write(INSTANCES, "good", records.encode(saved(record="good")))
    store.write(INSTANCES, "bad", data)

    found = store.read()

    assert found.head == Head(agent_id="me")
    assert list(found.instances) == ["good"]
    assert [(one.path.name, one.later) for one in found.damage] == [("bad.damaged", False)]
    assert (tmp_path / "db/instances/bad.damaged").read_bytes() == data
    assert store.read().damage == []


def test_the_id_outlives_the_head(store: RecordStore, tmp_path: Path) -> None:
    """By its own file, and without that by any record; a name that is no id is none."""
    store.write(HEAD, "agent", b"{")
    store.write(INSTANCES, "r", records.encode(saved(agent_id="of-a-record")))
    store.write_id("of-the-file")

    assert store.read().head == Head(agent_id="of-the-file")
    (tmp_path / "agent.id").write_bytes(b"\0" * 20)
    assert store.read().head == Head(agent_id="of-a-record")


def test_what_a_later_release_wrote_is_left_to_it(store: RecordStore, tmp_path: Path) -> None:
    """Its records stay in place, with the containers that are theirs; its head makes room for ours."""
    later = json.dumps({"agent_id": "me", "format": FORMAT + 1, "handle": "h"}).encode()
    store.write(HEAD, "agent", later)
    store.write(INSTANCES, "r", later)
    store.write_id("me")

    found = store.read()

    assert found.head == Head(agent_id="me")
    assert sorted((one.path.name, one.later, one.handle) for one in found.damage) == [
        ("agent.json", True, "h"),
        ("r.json", True, "h"),
    ]
    assert (tmp_path / "db/instances/r.json").read_bytes() == later
    assert (tmp_path / "db/agent.later").read_bytes() == later


def test_a_write_that_fails_leaves_the_old_record(store: RecordStore, tmp_path: Path) -> None:
    """Half a record would be none; what it left is no hindrance later."""
    store.write(INSTANCES, "r", records.encode(saved()))
    (tmp_path / "db/instances/r.json.new").symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space"):
        store.write(INSTANCES, "r", records.encode(saved(version="v3")))

    assert store.read().instances == {"r": saved()}
    store.write(INSTANCES, "r", records.encode(saved(version="v3")))
    assert store.read().instances == {"r": saved(version="v3")}


# ---- the release before --------------------------------------------------------------------------------------------


def test_the_one_file_of_the_first_release_is_taken_over(store: RecordStore, tmp_path: Path) -> None:
    """What that release wrote, byte for byte: every instance in its state, and the stagings."""
    (tmp_path / "db").mkdir()
    (tmp_path / "db/agent.json").write_bytes((old_release.FIXTURES / "agent.json").read_bytes())

    found = store.read()

    assert found.head == Head(agent_id="c5f2f407-16d5-4ca9-b598-f85f676f9429")
    states = {one.message.name: one.state for one in found.instances.values()}
    assert states == {
        "running": State.RUNNING,
        "crashed": State.CRASHED,
        "stubborn": State.STOPPING,
        "slow": State.STARTING,
    }
    assert all(one.record == name == one.id and one.whole for name, one in found.instances.items())
    assert [one.app_id for one in found.stagings.values()] == [one.app_id for one in old_stagings()]
    assert found.damage == []


def old_file() -> OneFile:
    head = records.decode_head((old_release.FIXTURES / "agent.json").read_bytes())
    assert isinstance(head, OneFile)
    return head


def old_stagings() -> tuple[SavedStaging, ...]:
    return old_file().stagings


def test_a_bad_instance_in_the_one_file_costs_itself_only(store: RecordStore, tmp_path: Path) -> None:
    """Its bytes are set aside."""
    old = msgspec.structs.replace(old_file(), instances=(msgspec.Raw(b'{"id": 3}'), *old_file().instances))
    (tmp_path / "db").mkdir()
    (tmp_path / "db/agent.json").write_bytes(msgspec.json.encode(old))

    found = store.read()

    assert len(found.instances) == len(old_file().instances)
    assert [one.path.name for one in found.damage] == ["instance-0.damaged"]


async def test_the_one_file_stands_until_all_of_it_is_written_anew_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full at that moment: else what goes in this agent's life comes back with the next."""
    monkeypatch.setattr(agent_memory, "RETRY_S", 0.01)
    (tmp_path / "db").mkdir()
    (tmp_path / "db/agent.json").write_bytes((old_release.FIXTURES / "agent.json").read_bytes())
    (tmp_path / "db/instances").write_text("in the way")
    registry = Registry()
    memory = agent_memory.AgentMemory(tmp_path, LOG)
    instance_records = InstanceRecords(memory.written, registry, NO_DEPOT, memory.agent_id)
    for one in memory.found.instances.values():
        instance = records.load_instance(one)
        registry.add(instance)
        instance_records.save(instance)
    assert not await memory.take_possession()
    assert isinstance(head_in(tmp_path), OneFile)

    (tmp_path / "db/instances").unlink()
    await asyncio.wait_for(memory.take_possession_later(), 10)

    assert head_in(tmp_path) == memory.head
    memory.written.close()


class _NoDepot:
    def find(self, handle: str) -> Any:
        raise UnknownHandle(handle)


NO_DEPOT: Any = _NoDepot()


def head_in(base_dir: Path) -> Head | OneFile:
    return records.decode_head((base_dir / "db/agent.json").read_bytes())


def test_a_take_over_that_was_broken_off_is_begun_again(store: RecordStore, tmp_path: Path) -> None:
    """Records are written before the head: what is there of them already is the newer."""
    (tmp_path / "db").mkdir()
    (tmp_path / "db/agent.json").write_bytes((old_release.FIXTURES / "agent.json").read_bytes())
    name, one = next(iter(store.read().instances.items()))
    store.write(INSTANCES, name, records.encode(msgspec.structs.replace(one, version="newer")))

    found = store.read()

    assert len(found.instances) == len(old_file().instances)
    assert found.instances[name].version == "newer"


# ---- ahead of what is published ------------------------------------------------------------------------------------
