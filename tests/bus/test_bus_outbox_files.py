"""The files of the outbox: a full disk, syncs, and a bound (docs/bus.md, "Outbox")."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import Host, NatsServer, kept_files, staged, until
from servers_fixtures import Listen, MakeHost

from agent.bus import messages as m
from agent.bus.outbox import Kept, Outbox, OutboxEntry

pytestmark = pytest.mark.bus


@contextmanager
def full_disk() -> Iterator[None]:
    """As a full disk: 100 bytes go in, then an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_a_full_disk_costs_an_event_its_safety_only(
    make_host: MakeHost, listen: Listen, tmp_path: Path
) -> None:
    """A write that the kernel refuses: sent from memory, logged, and no half of a file stays."""
    peer = await listen("box")
    host = make_host()
    await host.run_until_connected()
    kept: list[int] = []
    with full_disk():
        host.bus.publish_event(staged(1), reply_to="box", on_kept=lambda: kept.append(1))
        await until(lambda: peer.on("box") == [m.encode(staged(1))], "it arrives")
        await until(lambda: kept, "it has left, so the memory may forget it")

    assert [line["subject"] for line in host.logged("outbox_not_written")] == ["box"]
    assert kept_files(tmp_path) == []


async def test_the_memory_forgets_nothing_that_is_in_no_file_and_has_not_left(
    server: NatsServer, make_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, the bus away, and then a kill: the next agent publishes from the memory. With room again it is a file."""
    monkeypatch.setattr("agent.bus.outbox_writer.SYNC_PAUSE_S", 0.05)
    again: list[int] = []
    write = Outbox.write

    def noted_write(outbox: Outbox, entry: OutboxEntry) -> None:
        again.append(entry.number)
        write(outbox, entry)

    monkeypatch.setattr(Outbox, "write", noted_write)
    await server.kill()
    host = make_host()
    host.run()
    kept: list[int] = []
    with full_disk():
        host.bus.publish_event(staged(1), reply_to="box", on_kept=lambda: kept.append(1))
        await until(lambda: len(again) >= 3, "it is written again")
        assert kept == []
        assert kept_files(tmp_path) == []

    await until(lambda: kept == [1], "it is kept")
    assert len(kept_files(tmp_path)) == 1
    assert len(host.logged("outbox_not_written")) == 1


async def test_what_waits_is_synced_in_a_thread_several_at_a_time(
    server: NatsServer, make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync takes milliseconds: 300 of them stopped the event loop for two seconds."""
    passes: list[tuple[int, ...]] = []
    sync = Outbox.sync

    def noted_sync(outbox: Outbox, numbers: tuple[int, ...]) -> None:
        assert threading.current_thread() is not threading.main_thread()
        sync(outbox, numbers)
        passes.append(numbers)

    monkeypatch.setattr(Outbox, "sync", noted_sync)
    monkeypatch.setattr("agent.bus.outbox_writer.SYNC_PAUSE_S", 0.2)
    await server.kill()  # nobody is there: all of them wait
    host = make_host()
    host.run()
    for number in range(300):
        host.bus.publish_event(staged(number), reply_to="box")

    await until(lambda: sum(map(len, passes)) >= 300, "all are synced")
    assert sorted(number for one in passes for number in one) == list(range(1, 301))
    assert len(passes) < 20


def test_what_has_left_is_not_synced(tmp_path: Path) -> None:
    """Nearly all events leave before a sync of theirs could be of use."""
    outbox = Outbox(tmp_path)
    entries = [outbox.add(Kept("box", b"%d" % number)) for number in range(3)]
    for entry in entries:
        outbox.write(entry)
    outbox.remove(entries[1].number)

    assert outbox.take_unsynced() == (1, 3)
    assert outbox.take_unsynced() == ()
    outbox.remove(entries[0].number)
    outbox.sync((1, 3))  # the one that has left meanwhile is no error


async def test_the_oldest_of_too_many_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus that is away for days: memory and disk stay bounded, and it is told."""
    monkeypatch.setattr("agent.bus.sender.LIMIT", 3)
    host = Host(["nats://127.0.0.1:1"], tmp_path / "outbox")
    for number in range(5):
        host.bus.publish_event(staged(number), reply_to=f"box.{number}")
    host.run()
    await until(lambda: len(kept_files(tmp_path)) == 3, "three are kept")
    await host.stop()
    kept = [entry.kept.subject for entry in Outbox(tmp_path / "outbox")]
    assert kept == ["box.2", "box.3", "box.4"]
    assert [line["subject"] for line in host.logged("outbox_full_oldest_dropped")] == ["box.0", "box.1"]
