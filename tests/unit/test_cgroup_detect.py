"""Which hierarchy is taken, from texts of /proc/self/mountinfo as hosts write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.cgroups import CgroupsMissing, Hierarchy, Version, detect, v2_mount
from container.cgroups.v1 import socket_limit_bytes
from container.cgroups.v2 import weight_of

pytestmark = pytest.mark.unit

OTHERS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
24 22 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:2 - sysfs sysfs rw
"""
V1 = """\
30 24 0:25 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:26 / /sys/fs/cgroup/systemd rw,relatime shared:10 - cgroup cgroup rw,xattr,name=systemd
32 30 0:29 / /sys/fs/cgroup/pids rw,relatime shared:15 - cgroup cgroup rw,pids
33 30 0:30 / /sys/fs/cgroup/blkio rw,relatime shared:16 - cgroup cgroup rw,blkio
34 30 0:31 / /sys/fs/cgroup/freezer rw,relatime shared:17 - cgroup cgroup rw,freezer
35 30 0:32 / /sys/fs/cgroup/devices rw,relatime shared:18 - cgroup cgroup rw,devices
36 30 0:33 / /sys/fs/cgroup/memory rw,relatime shared:19 - cgroup cgroup rw,memory
"""
SPLIT = """\
37 30 0:34 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
38 30 0:35 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
"""
TOGETHER = "37 30 0:34 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:20 - cgroup cgroup rw,cpu,cpuacct\n"
UNIFIED = "39 30 0:36 / /sys/fs/cgroup/unified rw,relatime shared:11 - cgroup2 cgroup2 rw,nsdelegate\n"
V2 = "26 24 0:23 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"

ALL = frozenset(["cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"])
NONE: frozenset[str] = frozenset()
FS = Path("/sys/fs/cgroup")


def v1(**places: str) -> Hierarchy:
    """v1 at the usual places but for those named."""
    names = {name: name for name in ("cpu", "cpuacct", "memory", "devices", "pids", "freezer")} | places
    together = {FS / place: tuple(place.split(",")) for place in names.values()}
    return Hierarchy(Version.V1, {name: FS / place for name, place in names.items()}, together)


def test_a_v1_host_with_a_mount_for_each_controller() -> None:
    assert detect(OTHERS + V1 + SPLIT, NONE) == v1()


def test_a_v1_host_with_cpu_and_cpuacct_in_one_mount() -> None:
    """They share their directories."""
    assert detect(OTHERS + V1 + TOGETHER, NONE) == v1(cpu="cpu,cpuacct", cpuacct="cpu,cpuacct")


def test_a_mount_is_known_by_all_its_controllers_and_by_no_flag() -> None:
    """Also by those that nobody here needs: a mount that names some of them is refused by the kernel."""
    text = TOGETHER.replace("rw,cpu,cpuacct", "rw,xattr,cpuset,cpu,cpuacct,clone_children,release_agent=/x")
    found = detect(OTHERS + V1.replace("rw,memory", "rw,memory,hugetlb") + text, NONE)

    assert found.together[FS / "cpu,cpuacct"] == ("cpuset", "cpu", "cpuacct")
    assert found.together[FS / "memory"] == ("memory", "hugetlb")
    assert found.mounts["cpuset"] == FS / "cpu,cpuacct"


def test_cpuset_is_taken_where_it_is_and_not_missed_where_it_is_not() -> None:
    """No limit needs it."""
    cpuset = "40 30 0:40 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"

    assert detect(OTHERS + V1 + SPLIT + cpuset, NONE) == v1(cpuset="cpuset")
    assert "cpuset" not in detect(OTHERS + V1 + SPLIT, NONE).mounts


def test_a_hybrid_host_is_v1() -> None:
    """Its v2 hierarchy is there, and empty: the controllers are bound to v1."""
    text = OTHERS + V1 + TOGETHER + UNIFIED

    assert detect(text, NONE) == detect(text, frozenset({"hugetlb", "rdma"}))
    assert detect(text, NONE) == v1(cpu="cpu,cpuacct", cpuacct="cpu,cpuacct")
    assert v2_mount(text) == FS / "unified"


def test_a_v2_host() -> None:
    """With and without the options of today's distributions."""
    for text in (OTHERS + V2, OTHERS + V2.replace(",nsdelegate,memory_recursiveprot", "")):
        assert detect(text, ALL) == Hierarchy(Version.V2, {"": FS})
        assert v2_mount(text) == FS


def test_a_v2_hierarchy_without_controllers_is_refused_by_name() -> None:
    """As in a container to which nothing was delegated."""
    with pytest.raises(CgroupsMissing) as refused:
        detect(OTHERS + V2, frozenset({"cpu", "hugetlb"}))

    assert str(refused.value) == "cgroup v2: /sys/fs/cgroup does not offer memory, pids"


def test_a_hybrid_host_that_lacks_a_controller_is_refused_for_both() -> None:
    """Neither hierarchy has what limits need, and each says what."""
    with pytest.raises(CgroupsMissing) as refused:
        detect(OTHERS + V1 + UNIFIED, frozenset({"cpu"}))

    assert str(refused.value) == (
        "cgroup v1: no mount of cpu, cpuacct; cgroup v2: /sys/fs/cgroup/unified does not offer memory, pids"
    )


@pytest.mark.parametrize(
    "text", ["", OTHERS, "garbage\n", "1 2 - cgroup2\n", "1 2 0:1 / /x rw - cgroup2 y\n"]
)
def test_a_host_without_any_is_refused(text: str) -> None:
    """Also one whose text makes no sense."""
    assert v2_mount(text) is None
    with pytest.raises(CgroupsMissing, match="cgroup v1: no mount of cpu, cpuacct, memory"):
        detect(text, NONE)


def test_inside_a_container_the_mounts_begin_below_the_root() -> None:
    """Their roots are the container's own cgroup: what is made below the mount point is made in there."""
    inside = (V1 + SPLIT).replace(" / /sys/fs/cgroup/", " /docker/3f2a /sys/fs/cgroup/")
    assert detect(OTHERS + inside, NONE) == v1()

    assert detect(OTHERS + V2.replace(" / /sys", " /kubepods/pod7 /sys"), ALL) == Hierarchy(
        Version.V2, {"": FS}
    )


def test_a_whole_hierarchy_comes_before_a_part_of_it() -> None:
    """Somebody's bind of one cgroup, seen first, is not the host's."""
    part = "20 22 0:33 /somebody /srv/memory rw - cgroup cgroup rw,memory\n"
    assert detect(OTHERS + part + V1 + SPLIT, NONE) == v1()

    part = "20 22 0:23 /somebody /srv/cgroup rw - cgroup2 cgroup2 rw\n"
    assert detect(OTHERS + part + V2, ALL) == Hierarchy(Version.V2, {"": FS})


def test_what_only_looks_like_a_controller_is_none() -> None:
    """A hierarchy of that name, a mount point of that name, an option of the mount and not of the file system."""
    lookalikes = (
        "40 30 0:40 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,name=memory\n"
        "41 30 0:41 / /sys/fs/cgroup/pids rw,pids - cgroup cgroup rw\n"
        "42 30 0:42 / /cgroup/cpu rw - tmpfs cgroup rw,cpu\n"
    )
    with pytest.raises(CgroupsMissing, match="no mount of cpu, cpuacct, memory, devices, pids, freezer"):
        detect(OTHERS + lookalikes, NONE)


def test_odd_characters_in_a_mount_point() -> None:
    """The kernel writes space, tab, newline and backslash as octal numbers, anything else as it is."""
    text = V2.replace("/sys/fs/cgroup", r"/m\040n\011\134ü")

    assert detect(text, ALL) == Hierarchy(Version.V2, {"": Path("/m n\t\\ü")})


def test_shares_become_weights() -> None:
    """As they are, so that 2,048 MB (256) against 64 (8) are 32 to 1 here too; the ends are those of v2."""
    assert [weight_of(shares) for shares in (1, 2, 8, 256, 1024, 10_000)] == [1, 2, 8, 256, 1024, 10_000]
    assert [weight_of(shares) for shares in (-1, 0, 10_001, 262_144)] == [1, 1, 10_000, 10_000]


@pytest.mark.parametrize(
    ("memory_mib", "socket_mib"), [(1, 8), (16, 8), (32, 8), (64, 16), (256, 64), (2048, 512)]
)
def test_sockets_get_a_quarter_of_the_memory_and_never_less_than_8_mib(
    memory_mib: int, socket_mib: int
) -> None:
    """From 16 MiB on both together are at most one and a half times the limit."""
    assert socket_limit_bytes(memory_mib << 20) == socket_mib << 20
    assert memory_mib < 16 or memory_mib + socket_mib <= 1.5 * memory_mib
