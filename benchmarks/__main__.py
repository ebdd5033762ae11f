"""`make bench`: times Garrison, `crun run`, `crun exec` and `bwrap` in one run, and prints the ratios.

Ratios of one run can be compared between machines; times cannot. The run has a network and mount namespace of its own.
It prints a table and writes ``benchmarks/results/latest.json``. A ratio above its bound is printed, and is no failure.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import structlog

from benchmarks import peers
from benchmarks.measure import Figure, Subject, interleave
from container import Container, ContainerSpec, Depot, DepotSettings, JobSpec, Limits, User

RESULTS = Path(__file__).parent / "results" / "latest.json"
TRUE = JobSpec(argv=("/bin/true",), user=User.ROOT, cwd="/")
WHOLE, CROWD = "create + run + destroy", "40 create + run at once"
#: (title, subject of Garrison, subject of the peer, highest ratio that is acceptable; None: no bound)
RATIOS = (
    ("create, complete, against `crun run true`", "create", "crun run", 0.8),
    ("create + run(true) + destroy, against `crun run true`", WHOLE, "crun run", None),
    ("create + run(true) + destroy, against `bwrap --unshare-all true`", WHOLE, "bwrap", None),
    ("run(true) in a live container, against `crun exec true`", "run", "crun exec", 0.25),
)


def private_host() -> None:
    """Enter a new network and mount namespace, so that the machine's firewall and mounts are not changed. Needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000 | 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare of mount and network namespaces (needs root)")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    unified = Path("/sys/fs/cgroup/unified")
    if unified.is_mount():  # crun refuses a hybrid hierarchy
        subprocess.run(["umount", str(unified)], check=True)


def garrison_subjects(depot: Depot, spec: ContainerSpec, live: Container) -> dict[str, Subject]:
    """The timed actions of Garrison. ``live`` is a container that exists during the whole run."""
    made: list[str] = []

    async def create() -> None:
        made.append((await depot.create(spec)).handle)

    async def create_and_run() -> None:
        container = await depot.create(spec)
        made.append(container.handle)
        await run_true(container)

    async def forty() -> None:
        await asyncio.gather(*(create_and_run() for _ in range(40)))

    async def destroy() -> None:
        await asyncio.gather(*(depot.destroy(handle) for handle in made))
        made.clear()

    async def whole() -> None:
        await create_and_run()
        await destroy()

    async def run() -> None:
        await run_true(live)

    async def info() -> None:
        await live.info()

    return {
        "create": Subject(create, destroy),
        WHOLE: Subject(whole),
        "run": Subject(run),
        "info": Subject(info),
        CROWD: Subject(forty, destroy),
    }


async def run_true(container: Container) -> None:
    status = (await container.run(TRUE)).status
    assert status.code == 0, status


def peer(argv: list[str], cwd: Path | None = None) -> Subject:
    async def action() -> None:
        await asyncio.to_thread(peers.run, argv, cwd)

    return Subject(action)


def peer_subjects(base: Path, stack: Path, held: ExitStack) -> dict[str, Subject]:
    """The timed actions of the peers that are installed."""
    found = peers.present()
    subjects = {}
    if "crun" in found:
        peers.make_bundle(base / "true", stack, ["/bin/true"])
        peers.make_bundle(base / "sleep", stack, ["/bin/sleep", "3600"])
        live = f"bench-live-{os.getpid()}"
        held.enter_context(peers.crun_container(base / "sleep", live))
        subjects["crun run"] = peer(["crun", "run", f"bench-{os.getpid()}"], base / "true")
        subjects["crun exec"] = peer(["crun", "exec", live, "/bin/true"])
    if "bwrap" in found:
        subjects["bwrap"] = peer(["bwrap", "--unshare-all", "--ro-bind", str(stack), "/", "/bin/true"])
    return subjects


async def measure(base: Path, stack: Path) -> dict[str, Figure]:
    settings = DepotSettings(
        depot_dir=base / "depot",
        templates_dir=base / "templates",
        cgroup_parent=f"garrison-bench-{os.getpid()}",
        release_delay_s=0,
    )
    spec = ContainerSpec(layers=(stack,), limits=Limits(64 << 20, 128, 128, 64 << 20))
    depot = await Depot.open(settings, log=structlog.get_logger())
    try:
        with ExitStack() as held:
            subjects = garrison_subjects(depot, spec, await depot.create(spec))
            crowd = {CROWD: subjects.pop(CROWD)}  # timed alone, because its load would slow the others down
            figures = await interleave({**subjects, **peer_subjects(base, stack, held)})
            return figures | await interleave(crowd)
    finally:
        for handle in depot.handles():
            await depot.destroy(handle)
        await depot.close(remove_tables=True)


def report(figures: dict[str, Figure], versions: dict[str, str]) -> dict[str, object]:
    print(f"{'subject':<34}{'median ms':>12}{'p95 ms':>10}{'runs':>6}")
    for name, figure in figures.items():
        print(f"{name:<34}{figure.median_ms:>12.2f}{figure.p95_ms:>10.2f}{figure.runs:>6}")
    ratios: dict[str, float] = {}
    print()
    for title, ours, theirs, must in RATIOS:
        if theirs not in figures:
            print(f"{title}: left out, {theirs.split()[0]} is not installed")
            continue
        ratios[title] = round(figures[ours].median_ms / figures[theirs].median_ms, 3)
        print(f"{title}: {ratios[title]}" + (f" (must be <= {must})" if must else ""))
    return {
        "machine": {"cores": os.cpu_count(), "arch": platform.machine()},
        "kernel": platform.release(),
        "python": platform.python_version(),
        "peers": versions,
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "ratios": ratios,
    }


def main() -> None:
    peers.install_missing()
    private_host()
    cache = Path(os.environ.get("GARRISON_CACHE", Path.home() / ".cache" / "garrison"))
    stack = cache / "stacks" / "busybox" / "rootfs"
    base = Path(tempfile.mkdtemp(prefix="garrison-bench-", dir="/var/tmp"))
    try:
        figures = asyncio.run(measure(base, stack))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    versions = {name: peer.version for name, peer in peers.present().items()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report(figures, versions), indent=1) + "\n")


if __name__ == "__main__":
    main()
