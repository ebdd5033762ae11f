"""The test host: a network and mount namespace of the test process's own, and the proof that nothing is left.

Unsharing the pytest process itself (once, before any thread is there) puts every child inside without a wrapper. The machine's
firewall, links and mounts are never seen, let alone touched. cgroups and loop devices have no namespace that would help:
those are compared by what this process and its children made.
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
    """The kernel or the rights are not there; tests that need them fail, they are not skipped."""


def enter() -> None:
    """Become a test host. Raises HostUnfit."""
    if os.geteuid() != 0:
        raise HostUnfit("kernel tests need root")
    if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) != 0:
        raise HostUnfit(f"unshare of mount and network namespaces: {os.strerror(ctypes.get_errno())}")
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise HostUnfit("cannot become a subreaper")
    run("mount", "--make-rprivate", "/")
    _let_go_of_images()
    _own_sysfs()
    run("ip", "link", "set", "lo", "up")
    # A host has an address of its own beside loopback, and a way out (192.0.2.0/24 is for documentation, RFC 5737).
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
    """Disk images of containers that run on this machine now came along: our copy of a mount would keep them in use."""
    for line in _mounts():
        _, point, *_, source, _ = line.split(" ")
        if source.startswith("/dev/loop"):
            run("umount", "--lazy", point)


def _own_sysfs() -> None:
    """/sys/class/net shows the namespace that sysfs was mounted in; the cgroups below it are carried over."""
    with tempfile.TemporaryDirectory() as aside:
        run("mount", "--rbind", "/sys/fs/cgroup", aside)
        run("mount", "-t", "sysfs", "sysfs", "/sys")
        run("mount", "--rbind", aside, "/sys/fs/cgroup")
        run("umount", "--lazy", aside)


@dataclass(frozen=True, slots=True)
class Picture:
    """What could leak. Compared as sets, so that the difference names the thing."""

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
    """Without the numbers, which a remount changes."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [" ".join(line.split(" ")[3:]) for line in lines]


def _cgroups() -> list[str]:
    """Parents that tests of this process make carry its pid in their name."""
    name = f"garrison-test-{os.getpid()}*"
    found = []
    for parent in {*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")}:
        # os.walk passes over what is removed under its hands
        found += [path for path, _, _ in os.walk(parent)]
    return found


def _rules() -> list[str]:
    return run("nft", "list", "ruleset").splitlines()


#: Where this session keeps its images; another session's loop devices are its own business.
own_places: list[str] = [f"garrison-{os.getpid()}-"]


def _loops() -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = path.read_text().strip()
        except OSError:  # it went meanwhile
            continue
        if any(place in text for place in own_places):
            found.append(f"{path.parent.parent.name} {text}")
    return found


#: The depots of this session's tests.
own_depots: set[Path] = set()


def _leases() -> list[str]:
    """What the containers of a depot hold; one that rests after its container is written down nowhere."""
    found = []
    for path in (path for depot in own_depots for path in depot.glob("*/snapshot.json")):
        try:
            held = json.loads(path.read_bytes())
        except (OSError, ValueError):  # it went meanwhile, or a test has damaged it
            continue
        found += [f"{kind} {held.get(kind)} of {path.parent}" for kind in ("network", "ids_first")]
    return found


def _reap() -> None:
    """Orphans come to us (subreaper); those that have ended are nobody's leak."""
    try:
        while True:
            # only zombies that no Popen or event loop of this process waits for may be taken: peek first
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
    """Until all is as before; the kernel takes links, loops and processes back a little later. Else: what is left."""
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
