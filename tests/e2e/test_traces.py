"""The demo's check for leftovers is itself correct: it finds each kind, and does not report what belongs to others."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from agent.dev.traces import adopt_orphans, look
from agent.dev.up import cgroup_parent

pytestmark = pytest.mark.e2e


def sh(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def made(*words: str | Path, undo: tuple[str | Path, ...]) -> Iterator[None]:
    sh(*words)
    try:
        yield
    finally:
        sh(*undo)


@contextmanager
def group_of(state: Path) -> Iterator[None]:
    top = Path("/sys/fs/cgroup/pids")
    group = (top if top.exists() else top.parent) / cgroup_parent(state)
    group.mkdir()
    try:
        yield
    finally:
        group.rmdir()


@contextmanager
def loop_of(image: Path) -> Iterator[None]:
    image.write_bytes(bytes(1 << 20))
    device = sh("losetup", "--find", "--show", image)
    try:
        yield
    finally:
        sh("losetup", "--detach", device)


@contextmanager
def orphan() -> Iterator[None]:
    pid = int(sh("sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"))
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # it is ours: that is the point


def mounted(point: Path) -> AbstractContextManager[None]:
    point.mkdir()
    return made("mount", "-t", "tmpfs", "tmpfs", point, undo=("umount", point))


def linked(name: str) -> AbstractContextManager[None]:
    pair = ("ip", "link", "add", name, "type", "veth", "peer", "name", "x-00000")
    return made(*pair, undo=("ip", "link", "delete", name))


def ours(traces: list[str]) -> list[str]:
    """The agent that may run here goes on changing its own table, which is of the family inet."""
    return [one for one in traces if '"inet"' not in one]


def test_each_kind_of_trace_is_seen(tmp_path: Path) -> None:
    """A mount, a link, a group, a loop device, our table, a stranger's, a process: each is named, and none when they are gone."""
    adopt_orphans()
    before = look(tmp_path)
    with ExitStack() as undo:
        undo.enter_context(orphan())
        undo.enter_context(group_of(tmp_path))
        undo.enter_context(loop_of(tmp_path / "image"))
        undo.enter_context(mounted(tmp_path / "point"))
        undo.enter_context(linked("w-00000"))
        for table in ("garrison", "stranger"):  # of a family that no agent uses: one may run here
            undo.enter_context(
                made("nft", "add", "table", "ip", table, undo=("nft", "delete", "table", "ip", table))
            )
        kinds = [one.partition(":")[0] for one in ours(look(tmp_path).beyond(before))]
    assert kinds == [
        "mounts", "links", "cgroups", "loop_devices", "firewall", "firewall_of_others", "processes"
    ]  # fmt: skip
    assert ours(look(tmp_path).beyond(before)) == []


def test_another_agents_things_are_not_ours(tmp_path: Path) -> None:
    """Groups, mounts and loop devices of another state directory do not count."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    theirs.mkdir()
    before = look(mine)
    with group_of(theirs), loop_of(theirs / "image"), mounted(theirs / "point"):
        assert look(mine).beyond(before) == []


def test_a_removed_rule_of_others_is_reported() -> None:
    """Garrison may not remove what it did not make."""
    with made("nft", "add", "table", "inet", "stranger", undo=("nft", "delete", "table", "inet", "stranger")):
        before = look(Path("/nowhere"))
    (told,) = look(Path("/nowhere")).beyond(before)
    assert told.startswith("firewall_of_others, gone:")
    assert "stranger" in told
