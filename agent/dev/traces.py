"""What containers leave on a host, looked at from outside: for `make demo` and the end-to-end tests.

It asks the kernel, not Garrison: what Garrison forgot would be missing in its own lists.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

# Base tables and an empty parent group are the host's set-up, not a container's trace.
OURS_IN_MOUNTS = re.compile(r"garrison|/depot/")


@dataclass(frozen=True, slots=True)
class Traces:
    mounts: frozenset[str]
    links: frozenset[str]
    cgroups: frozenset[str]
    loop_devices: frozenset[str]
    firewall: frozenset[str]
    processes: frozenset[str]

    def beyond(self, before: Traces) -> list[str]:
        """`kind: what` for each thing that was not there before."""
        new = []
        for field in fields(self):
            for item in sorted(getattr(self, field.name) - getattr(before, field.name)):
                new.append(f"{field.name}: {item}")
        return new


def look() -> Traces:
    return Traces(
        mounts=frozenset(_mounts()),
        links=frozenset(path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith("w-")),
        cgroups=frozenset(_cgroups()),
        loop_devices=frozenset(_loop_devices()),
        firewall=frozenset(_firewall()),
        processes=frozenset(_processes()),
    )


def _mounts() -> list[str]:
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if OURS_IN_MOUNTS.search(point)]


def _cgroups() -> list[str]:
    """Groups below a parent of ours, in every hierarchy."""
    found = []
    for parent in {*Path("/sys/fs/cgroup").glob("garrison*"), *Path("/sys/fs/cgroup").glob("*/garrison*")}:
        found += [str(path) for path in parent.rglob("*") if path.is_dir()]
    return found


def _loop_devices() -> list[str]:
    files = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached just now
            files.append(f"{backing.parts[3]} {backing.read_text().strip()}")
    return files


def _firewall() -> list[str]:
    """Elements and rules of our tables that name a container's link: `w-...`, or a published port's map."""
    done = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return []
    found = []
    for item in json.loads(done.stdout).get("nftables", []):
        kind, body = next(iter(item.items()))
        if isinstance(body, dict) and body.get("table") == "garrison":
            for element in body.get("elem", []):
                if kind in ("map", "set") and re.search(r"w-[0-9a-v]{5}|10\.254\.|-0\b", json.dumps(element)):
                    found.append(f"{kind} {body['name']}: {json.dumps(element)}")
    return found


def _processes() -> list[str]:
    """Of us (by the program's name or its command line), but not this one or its parents."""
    mine = set()
    pid = os.getpid()
    while pid > 1:
        mine.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) in mine:
            continue
        with contextlib.suppress(OSError):  # ended meanwhile
            words = (
                (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
            )
            name = (folder / "comm").read_text().strip()
            if name in ("wshd", "nats-server") or " -m agent run" in words or " -m agent up" in words:
                found.append(f"{folder.name} {words[:120]}")
    return found
