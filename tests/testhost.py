"""The test host: network and mount namespaces of the test process's own, and a check that tests leave nothing behind.

`enter` unshares the pytest process itself, once, before it has any threads. So every child is inside without a wrapper, and
tests can neither see nor change the machine's firewall, links and mounts. cgroups and loop devices have no such namespace;
there only what this process and its children made is compared.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class HostUnfit(RuntimeError):
    """The process lacks rights, or the kernel a feature. Tests that need them then fail, and are not skipped."""


def enter() -> None:
    """Move this process into the test host's namespaces. HostUnfit: this machine does not allow it."""
    if os.geteuid() != 0:
        raise HostUnfit("tests with real containers need root")
    if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) != 0:
        raise HostUnfit(f"unshare of mount and network namespaces: {os.strerror(ctypes.get_errno())}")
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise HostUnfit(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")
    run("mount", "--make-rprivate", "/")
    _let_go_of_images()
    _own_sysfs()
    _own_claims()
    run("ip", "link", "set", "lo", "up")
    # Like a real host, it has an address besides loopback and a default route (192.0.2.0/24 is for documentation, RFC 5737).
    run("ip", "link", "add", "uplink0", "type", "veth", "peer", "name", "uplink1")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "uplink0")
    for end in ("uplink0", "uplink1"):
        run("ip", "link", "set", end, "up")
    run("ip", "route", "add", "default", "via", "192.0.2.254")


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostUnfit(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def _let_go_of_images() -> None:
    """Unmount the disk images of containers that run on this machine. The new namespace has copies of their mounts, which would
    keep the images in use."""
    for line in _mounts():
        _, point, *_, source, _ = line.split(" ")
        if source.startswith("/dev/loop"):
            run("umount", "--lazy", point)


def _own_sysfs() -> None:
    """Mount sysfs again, since /sys/class/net shows the network namespace in which it was mounted. The cgroup file systems
    below it are bind-mounted into the new one."""
    with tempfile.TemporaryDirectory() as aside:
        run("mount", "--rbind", "/sys/fs/cgroup", aside)
        run("mount", "-t", "sysfs", "sysfs", "/sys")
        run("mount", "--rbind", aside, "/sys/fs/cgroup")
        run("umount", "--lazy", aside)


def _own_claims() -> None:
    """What depots of these tests claim (container/claims.py) is nothing to those of the machine."""
    Path("/run/garrison").mkdir(mode=0o700, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "mode=0700", "claims", "/run/garrison")


def forget_empty_tables() -> None:
    """The tables that iptables-nft makes at its first use; they are shared with others, so nobody removes them in earnest."""
    for line in run("nft", "list", "tables", "ip").splitlines():
        if line.split()[-1] in ("mangle", "filter", "nat"):
            table = run("nft", "list", *line.split())
            assert "garrison" not in table, table
            run("nft", "delete", *line.split())


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that a test could leak. The fields are sets, so that a difference names what leaked."""

    mounts: frozenset[str]
    cgroups: frozenset[str]
    links: frozenset[str]
    rules: frozenset[str]
    loops: frozenset[str]
    processes: frozenset[str]
    depots: frozenset[str]
    leases: frozenset[str]


def take_picture() -> Picture:
    _reap()
    return Picture(
        mounts=frozenset(_mounts()),
        cgroups=frozenset(_cgroups()),
        links=frozenset(path.name for path in Path("/sys/class/net").iterdir()),
        rules=frozenset(_rules()),
        loops=frozenset(_loops()),
        processes=frozenset(_descendants(os.getpid())),
        depots=frozenset(str(entry) for depot in own_depots if depot.exists() for entry in depot.iterdir()),
        leases=frozenset(_leases()),
    )


def _mounts() -> list[str]:
    """The lines of mountinfo without ids and device numbers, which change with a remount."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [" ".join(line.split(" ")[3:]) for line in lines]


def _cgroups() -> list[str]:
    """The control groups of this process's tests, whose parents have its pid in their names."""
    name = f"garrison-test-{os.getpid()}*"
    found = []
    for parent in {*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")}:
        # os.walk ignores a directory that is removed meanwhile
        found += [path for path, _, _ in os.walk(parent)]
    return found


def _rules() -> list[str]:
    return run("nft", "--stateless", "list", "ruleset").splitlines()


#: Parts of the paths of this session's disk images. Loop devices of other sessions are not compared.
own_places: list[str] = [f"garrison-{os.getpid()}-"]


def _loops() -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = path.read_text().strip()
        except OSError:  # the device was detached meanwhile
            continue
        if any(place in text for place in own_places):
            found.append(f"{path.parent.parent.name} {text}")
    return found


#: The depots of this session's tests.
own_depots: set[Path] = set()


def _leases() -> list[str]:
    """The leases in the snapshots of the depots' containers. A lease that rests after its container's end is in no file."""
    found = []
    for path in (path for depot in own_depots for path in depot.glob("*/snapshot.json")):
        try:
            held = json.loads(path.read_bytes())
        except (OSError, ValueError):  # removed meanwhile, or damaged by a test
            continue
        found += [f"{kind} {held.get(kind)} of {path.parent}" for kind in ("network", "ids_first")]
    return found


def _reap() -> None:
    """Reap orphans that have ended. As the subreaper this process is their parent, and they are no leak."""
    try:
        while True:
            # WNOWAIT: look for a zombie without reaping it
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is None:
                return
            os.waitpid(info.si_pid, os.WNOHANG)
    except ChildProcessError:
        return


def _descendants(root: int) -> list[str]:
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            head, _, tail = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue
        state, parent = tail.split()[:2]
        if state != "Z":
            parents.setdefault(int(parent), []).append((int(entry.name), head.split("(", 1)[1]))
    found, todo = [], [root]
    while todo:
        for pid, name in parents.get(todo.pop(), []):
            found.append(f"{name} (pid {pid})")
            todo.append(pid)
    return found


def wait_same(before: Picture, within_s: float = 10.0) -> list[str]:
    """Wait until nothing differs from ``before``, at most ``within_s`` seconds. Returns the differences that remain.

    It waits because the kernel removes links, loop devices and processes with a delay.
    """
    deadline = time.monotonic() + within_s
    while True:
        differences = _compare(before, take_picture())
        if not differences or time.monotonic() > deadline:
            return differences
        time.sleep(0.05)


def _compare(before: Picture, after: Picture) -> list[str]:
    found = []
    for field in fields(Picture):
        old, new = getattr(before, field.name), getattr(after, field.name)
        found += [f"{field.name}: left: {item}" for item in sorted(new - old)]
        found += [f"{field.name}: gone: {item}" for item in sorted(old - new)]
    return found
