"""Programs that size themselves by what they find in /sys/fs/cgroup: Debian's own, in a container of its own limits."""

from __future__ import annotations

import os
from pathlib import Path

from container import BindMount, ContainerSpec, Depot, DepotSettings, JobSpec, Limits

CACHE = Path(os.environ.get("GARRISON_CACHE", Path.home() / ".cache/garrison"))
STACK = CACHE / "stacks/debian/rootfs"
MIB = 1 << 20
#: Unpacked there by `.ci/setup runtimes`: a test host reaches no network.
JRE = CACHE / "runtimes/openjdk-17-jre-headless"
JAVA = "/usr/lib/jvm/java-17-openjdk-amd64/bin/java"


async def test_a_jvm_takes_half_of_its_container_at_most(tmp_path: Path) -> None:
    """JDK 17 in 256 MiB: it believes v1 only with memory, cpu, cpuacct and cpuset, and took 6 GB of a host with 24."""
    depot = await Depot.open(
        DepotSettings(
            depot_dir=tmp_path / "depot",
            templates_dir=tmp_path / "templates",
            cgroup_parent=f"garrison-test-{os.getpid()}",
            release_delay_s=0.0,
        )
    )
    parts = ("usr/lib/jvm", "etc/java-17-openjdk")
    spec = ContainerSpec(
        layers=(STACK.resolve(),),
        binds=tuple(BindMount(JRE / part, f"/{part}") for part in parts),
        limits=Limits(memory_bytes=256 * MIB, pids=512),
    )
    box = await depot.create(spec)
    try:
        result = await box.run(JobSpec((JAVA, "-XX:+PrintFlagsFinal", "-version"), cwd="/"))
    finally:
        await depot.destroy(box.handle)
        await depot.close(remove_tables=True)

    assert result.status.ok, result.stderr
    (line,) = (line for line in result.stdout.decode().splitlines() if " MaxHeapSize " in line)
    assert 32 * MIB <= int(line.split("=")[1].split()[0]) <= 128 * MIB
