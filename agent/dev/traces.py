"""Finds what a `garrison up` has left on the host, for `make demo` and the end-to-end tests.

The lists come from the kernel and not from Garrison, whose own lists would lack what it forgot. They have only what can belong to
this `up`, since other agents may start and stop on the same host meanwhile. Callers call `adopt_orphans` first.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from agent.dev.up import cgroup_parent
from container import linux
from container.defaults import TABLE

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Traces:
    mounts: frozenset[str]
    links: frozenset[str]
    cgroups: frozenset[str]
    loop_devices: frozenset[str]
    firewall: frozenset[str]
    firewall_of_others: frozenset[str]
    processes: frozenset[str]

    def beyond(self, before: Traces) -> list[str]:
        """A line `kind: item` for each item that was not there before, and for each removed rule of other programs."""
        new = []
        for field in fields(self):
            for item in sorted(getattr(self, field.name) - getattr(before, field.name)):
                new.append(f"{field.name}: {item}")
        gone = before.firewall_of_others - self.firewall_of_others
        return new + [f"firewall_of_others, gone: {item}" for item in sorted(gone)]


def adopt_orphans() -> None:
    """From now on a descendant that loses its parent becomes our child, so that `look` finds it."""
    linux.become_subreaper()


def look(state_dir: Path) -> Traces:
    rules = _ruleset()
    return Traces(
        mounts=frozenset(_mounts(state_dir)),
        links=frozenset(path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith("w-")),
        cgroups=frozenset(_cgroups(cgroup_parent(state_dir))),
        loop_devices=frozenset(_loop_devices(state_dir)),
        firewall=frozenset(text for text, ours in rules if ours),
        firewall_of_others=frozenset(text for text, ours in rules if not ours),
        processes=frozenset(_descendants(os.getpid())),
    )


def settled(state_dir: Path, before: Traces, timeout_s: float) -> list[str]:
    """The items that were not there before, once there are none or the time is over. The kernel removes some of them a moment
    after the last process.
    """
    deadline = time.monotonic() + timeout_s
    while (left := look(state_dir).beyond(before)) and time.monotonic() < deadline:
        time.sleep(POLL_S)  # a poll: no event reports that the kernel has removed everything
    return left


def _mounts(state_dir: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split(" ")[4] for line in lines if str(state_dir) in line]


def _cgroups(parent: str) -> list[str]:
    """The cgroup `parent` and all below it, in every hierarchy."""
    tops = (*Path("/sys/fs/cgroup").glob(parent), *Path("/sys/fs/cgroup").glob(f"*/{parent}"))
    return [str(path) for top in tops for path in (top, *top.rglob("*")) if path.is_dir()]


def _loop_devices(state_dir: Path) -> list[str]:
    files = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached just now
            files.append(f"{backing.parts[3]} {backing.read_text().strip()}")
    return [text for text in files if str(state_dir) in text]


def _ruleset() -> list[tuple[str, bool]]:
    """Each table, chain, set, map and rule without its counters; True: it is in a table of Garrison's."""
    done = subprocess.run(
        ["nft", "--stateless", "-j", "list", "ruleset"], capture_output=True, text=True, check=True
    )
    items = []
    for item in json.loads(done.stdout)["nftables"]:
        kind, body = next(iter(item.items()))
        if kind != "metainfo":
            ours = TABLE in (body.get("table"), body["name"] if kind == "table" else None)
            items.append((json.dumps({kind: _without_handle(body)}, sort_keys=True), ours))
    return items


def _without_handle(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "handle"}


def _descendants(top: int) -> list[str]:
    """Every process below `top`, without zombies."""
    found: list[str] = []
    todo = [top]
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError):  # ended meanwhile
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                todo += map(int, children.read_text().split())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
            if command and pid != top:  # a zombie has none
                found.append(f"{pid} {command[:120].decode(errors='replace')}")
    return found
