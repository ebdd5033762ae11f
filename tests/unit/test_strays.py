"""What shows a process inside its container's cgroups, on both versions, and what the kernel reports of links."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from container.cgroups.oom import SharedWatcher
from container.cgroups.v1 import CgroupSetV1
from container.cgroups.v2 import CgroupSetV2
from container.network.link import LinkReport, parse_report

ID = "1k2j3h4g5f6"
V1 = ("cpu", "cpuacct", "memory", "pids", "freezer", "devices")


def v1(mounts: Mapping[str, Path] | None = None) -> CgroupSetV1:
    return CgroupSetV1(mounts or {name: Path("/cgroup") / name for name in V1}, (), "garrison", ID)


def lines(**paths: str) -> str:
    """A text as v1 shows it; hierarchies that are not named are right."""
    found = {name: paths.get(name, f"/garrison/{ID}/job") for name in V1}
    rest = f"9:name=systemd:/user.slice\n0::{paths.get('unified', '/')}\n"
    return "".join(f"{number}:{name}:{path}\n" for number, (name, path) in enumerate(found.items())) + rest


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (lines(), True),
        (lines(pids=f"/garrison/{ID}/init"), True),  # on its way from one leaf to the other
        (lines(memory=f"/outer/garrison/{ID}/job"), True),  # the reader's own cgroup namespace is further up
        (lines(memory="/"), False),
        (lines(memory="/garrison/1k2j3h4g5f7/job"), False),
        (lines(memory=f"/garrison/{ID}"), False),
        (lines(memory=f"/garrison/{ID}/job/below"), False),
        (lines(memory=f"/garrison/{ID}/job (deleted)"), False),
        (lines(unified="/elsewhere"), True),  # no hierarchy of ours on v1
    ],
)
def test_v1_looks_at_each_hierarchy_of_its_own(text: str, inside: bool) -> None:
    assert v1().holds(text) is inside


def test_v1_knows_controllers_that_share_a_mount() -> None:
    together = v1(
        {name: Path("/cgroup/cpu,cpuacct") for name in ("cpu", "cpuacct")} | dict.fromkeys(V1[2:], Path("/m"))
    )
    assert not together.holds("3:cpu,cpuacct:/\n")
    assert together.holds(f"3:cpu,cpuacct:/garrison/{ID}/init\n")


def test_a_hierarchy_that_an_older_manager_did_not_use_is_not_looked_at(tmp_path: Path) -> None:
    """Its containers are in the root of that hierarchy, and that is no damage."""
    mounts = {name: tmp_path / name for name in V1}
    for name in V1[:-1]:
        (mounts[name] / "garrison" / ID / "init").mkdir(parents=True)
    one = v1(mounts)
    assert not one.holds(lines(devices="/"))
    one.note_missing()
    assert one.holds(lines(devices="/"))
    assert not one.holds(lines(memory="/"))


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (f"0::/garrison/{ID}/job\n", True),
        (f"0::/garrison/{ID}/init\n", True),
        ("0::/system.slice/x.service\n", False),
        (f"1:net_cls:/\n0::/garrison/{ID}/job\n", True),
    ],
)
def test_v2_looks_at_its_one_hierarchy(text: str, inside: bool) -> None:
    one = CgroupSetV2(Path("/cgroup/garrison"), ID, SharedWatcher())
    assert one.holds(text) is inside


def interface(index: int, flags: int, name: bytes = b"w-1k2j3h4g5f6-0\0") -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + struct.pack("=HH", 4 + len(name), 3) + name


@pytest.mark.parametrize(
    ("kind", "payload", "report"),
    [
        (16, interface(7, 1), LinkReport(7, "w-1k2j3h4g5f6-0", is_up=True)),
        (16, interface(7, 0x1002), LinkReport(7, "w-1k2j3h4g5f6-0")),
        (17, interface(7, 0), LinkReport(7, "w-1k2j3h4g5f6-0", is_deleted=True)),
        (21, struct.pack("=BBBBI", 2, 30, 0, 0, 7), LinkReport(7)),
        (16, interface(7, 1)[:12], None),
        (16, struct.pack("=BxHiII", 0, 1, 7, 1, 0), None),
        (21, b"\2\0\0", None),
        (24, interface(7, 1), None),
    ],
)
def test_a_report_of_the_kernel_is_taken_apart(kind: int, payload: bytes, report: LinkReport | None) -> None:
    """Broken ones and those about something else are dropped."""
    assert parse_report(kind, payload) == report
