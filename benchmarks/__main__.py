"""`make bench`: Garrison beside `crun run`, `crun exec` and `bwrap`, in one run, as ratios.

Runs in a network and mount namespace of its own (the test host). Prints a table and writes
``benchmarks/results/latest.json``. No figure is asserted here.
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
from dataclasses import asdict
from pathlib import Path

import structlog

from benchmarks import peers
from benchmarks.measure import Figure, Subject, interleave
from container import ContainerSpec, Depot, DepotSettings, JobSpec, Limits, User

RESULTS = Path(__file__).parent / "results" / "latest.json"
TRUE = JobSpec(argv=("/bin/true",), user=User.ROOT, cwd="/")
#: figure, Garrison's subject, the peer's subject that it is held against, the ratio that must be reached
RATIOS = (
    ("create, complete, against `crun run true`", "create", "crun run", 0.8),
    ("create + run(true) + destroy, against `crun run true`", "whole", "crun run", None),
    ("create + run(true) + destroy, against `bwrap --unshare-all true`", "whole", "bwrap", None),
    ("run(true) in a live container, against `crun exec true`", "run", "crun exec", 0.25),
)


def private_host() -> None:
    """A network and mount namespace of our own, so that the machine's firewall and mounts stay untouched."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000 | 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare of mount and network namespaces (needs root)")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    unified = Path("/sys/fs/cgroup/unified")
    if unified.is_mount():  # crun refuses a hybrid hierarchy
        subprocess.run(["umount", str(unified)], check=True)


async def garrison_subjects(depot: Depot, stack: Path) -> tuple[dict[str, Subject], list[str]]:
    spec = ContainerSpec(layers=(stack,), limits=Limits(64 << 20, 128, 128, 64 << 20))
    live = await depot.create(spec)
    made: list[str] = []

    async def create() -> None:
        made.append((await depot.create(spec)).handle)

    async def run() -> None:
        status = (await live.run(TRUE)).status
        assert status.code == 0, status

    async def whole() -> None:
        container = await depot.create(spec)
        await container.run(TRUE)
        await depot.destroy(container.handle)

    async def info() -> None:
        await live.info()

    return {"create": create, "run": run, "whole": whole, "info": info}, made


async def measure(base: Path, stack: Path) -> dict[str, Figure]:
    found = peers.present()
    settings = DepotSettings(
        depot_dir=base / "depot",
        templates_dir=base / "templates",
        cgroup_parent=f"garrison-bench-{os.getpid()}",
    )
    depot = await Depot.open(settings, log=structlog.get_logger())
    figures: dict[str, Figure] = {}
    try:
        subjects, made = await garrison_subjects(depot, stack)
        if "crun" in found:
            peers.make_bundle(base / "true", stack, ["/bin/true"])
            peers.make_bundle(base / "sleep", stack, ["/bin/sleep", "3600"])

            async def crun_run() -> None:
                await asyncio.to_thread(peers.run, ["crun", "run", f"bench-{os.getpid()}"], base / "true")

            subjects["crun run"] = crun_run
            with peers.crun_container(base / "sleep", f"bench-live-{os.getpid()}") as execute:

                async def crun_exec() -> None:
                    await asyncio.to_thread(execute)

                figures |= await interleave({"run": subjects.pop("run"), "crun exec": crun_exec})
        if "bwrap" in found:
            argv = ["bwrap", "--unshare-all", "--ro-bind", str(stack), "/", "/bin/true"]

            async def bwrap() -> None:
                await asyncio.to_thread(peers.run, argv)

            subjects["bwrap"] = bwrap
        figures |= await interleave(subjects)
        for handle in made:
            await depot.destroy(handle)
        figures |= {"40 at once": await forty_at_once(depot, stack)}
    finally:
        for handle in depot.handles():
            await depot.destroy(handle)
        await depot.close(remove_tables=True)
    return figures


async def forty_at_once(depot: Depot, stack: Path) -> Figure:
    """Wall time of 40 create+run(true) started together."""
    spec = ContainerSpec(layers=(stack,), limits=Limits(64 << 20, 128, 128, 64 << 20))

    async def one() -> str:
        container = await depot.create(spec)
        await container.run(TRUE)
        return container.handle

    handles: list[str] = []

    async def batch() -> None:
        handles.extend(await asyncio.gather(*(one() for _ in range(40))))

    figure = Figure(0, 0, 0)
    for _ in range(3):
        figure = (await interleave({"batch": batch}, runs=1))["batch"] if not handles else figure
        for handle in handles:
            await depot.destroy(handle)
        handles.clear()
        break
    return figure


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
