"""The launch plan: the same input gives the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.plan import BOUNDING_SET, Ethernet, LaunchFacts, hosts_file, make_plan
from container.pools import IdLease
from container.resolver import Resolver
from container.spec import Access, BindMount, ContainerSpec

pytestmark = pytest.mark.unit

ETHERNET = Ethernet("10.254.0.2", 30, "10.254.0.1", "02:00:00:00:00:01", 1500)


def facts(**changes: object) -> LaunchFacts:
    values: dict[str, object] = {
        "handle": "h1",
        "hostname": "web-0",
        "ids": IdLease(1_000_000_000),
        "upper_dir": Path("/depot/h1/disk/root"),
        "home_upper_dir": Path("/depot/h1/disk/home"),
        "stack_homes": (Path("/stacks/s/home/vcap"),),
        "cgroup_init": (Path("/cg/init/tasks"),),
        "cgroup_job": (Path("/cg/job/tasks"),),
        "cgroup_shown": ("memory", "cpu,cpuacct"),
        "ethernet": ETHERNET,
        "resolver": Resolver(("9.9.9.9", "1.1.1.1"), ("example.org",)),
        "seccomp": b"\x01\x02",
        "socket": Path("/depot/h1/wshd.sock"),
    }
    return LaunchFacts(**{**values, **changes})  # type: ignore[arg-type]


def test_the_whole_plan_of_an_app() -> None:
    """One spec with everything in it, compared as a whole."""
    spec = ContainerSpec(
        layers=(Path("/stacks/s"), Path("/stacks/base")),
        home_layers=(Path("/layers/abc"),),
        binds=(
            BindMount(Path("/srv/shared"), "/mnt/shared", Access.READ_WRITE),
            BindMount(Path("/srv/pack"), "/mnt/pack", mapped=True),
        ),
        shm_bytes=1024,
    )

    assert make_plan(spec, facts()).directives == (
        ("version", "1"),
        ("handle", "h1"),
        ("hostname", "web-0"),
        ("ids", "1000000000", "65536"),
        ("layer", "/stacks/s"),
        ("layer", "/stacks/base"),
        ("upper", "/depot/h1/disk/root"),
        ("home", "/home/vcap"),
        ("home-layer", "/layers/abc"),
        ("home-layer", "/stacks/s/home/vcap"),
        ("home-upper", "/depot/h1/disk/home"),
        ("overlay", "volatile,redirect_dir=on,index=on"),
        ("bind", "/srv/shared", "/mnt/shared", "rw"),
        ("bind", "/srv/pack", "/mnt/pack", "ro-mapped"),
        ("file", "/etc/hosts", "0644", "127.0.0.1 localhost\n10.254.0.2 web-0\n"),
        ("file", "/etc/hostname", "0644", "web-0\n"),
        ("file", "/etc/resolv.conf", "0644", "nameserver 9.9.9.9\nnameserver 1.1.1.1\nsearch example.org\n"),
        ("shm", "1024"),
        ("cgroup-init", "/cg/init/tasks"),
        ("cgroup-job", "/cg/job/tasks"),
        ("cgroup-mount", "memory"),
        ("cgroup-mount", "cpu,cpuacct"),
        ("net", "veth"),
        ("eth0", "10.254.0.2", "30", "10.254.0.1", "02:00:00:00:00:01", "1500"),
        ("bounding", f"{BOUNDING_SET:x}"),
        ("seccomp", "0102"),
        ("socket", "/depot/h1/wshd.sock"),
    )


def test_words_end_with_a_nul_each() -> None:
    """wshd counts words, so none may be lost, not even an empty one."""
    plan = make_plan(ContainerSpec(layers=(Path("/s"),)), facts(resolver=Resolver()))

    words = plan.words().split(b"\0")

    assert words[-1] == b""
    assert len(words) - 1 == sum(len(directive) for directive in plan.directives)
    assert words[:4] == [b"version", b"1", b"handle", b"h1"]


def test_without_a_droplet_there_is_no_second_overlay() -> None:
    """The stack's own home directory then lies in the root overlay."""
    plan = make_plan(ContainerSpec(layers=(Path("/s"),)), facts())

    assert not plan.values("home")
    assert not plan.values("home-layer")
    assert not plan.values("home-upper")


def test_without_a_network_nothing_waits_for_go() -> None:
    """`net none` is said, never implied."""
    plan = make_plan(ContainerSpec(layers=(Path("/s"),), network=False), facts(ethernet=None))

    assert plan.values("net") == [("none",)]
    assert not plan.values("eth0")
    assert ("/etc/hosts", "0644", "127.0.0.1 localhost\n127.0.0.1 web-0\n") in plan.values("file")


def test_the_bounding_set_is_the_eleven_of_the_house() -> None:
    """CAP_SYS_ADMIN (21), SYS_PTRACE (19), NET_ADMIN (12), MKNOD (27), NET_RAW (13) are never in it."""
    assert [bit for bit in range(64) if BOUNDING_SET >> bit & 1] == [0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31]


def test_files_of_the_container() -> None:
    """The texts that end up below /etc."""
    assert hosts_file("web", "10.0.0.2") == "127.0.0.1 localhost\n10.0.0.2 web\n"
