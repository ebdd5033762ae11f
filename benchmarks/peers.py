"""The programs that Garrison is compared with: crun and bubblewrap, each run as a process.

A peer that is not installed is left out, and the report names it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {"crun": "crun", "bwrap": "bubblewrap"}


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    version: str


def install_missing() -> None:
    """Installs the missing peers with apt-get. A failure is ignored: :func:`present` then leaves the peer out."""
    wanted = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if wanted and shutil.which("apt-get"):
        subprocess.run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", *wanted],
            check=False,
            stdout=subprocess.DEVNULL,
        )


def present() -> dict[str, Peer]:
    found = {}
    for program in PACKAGES:
        if shutil.which(program):
            done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
            found[program] = Peer(
                program, done.stdout.splitlines()[0].removeprefix(f"{program} version ").strip()
            )
    return found


def make_bundle(directory: Path, rootfs: Path, argv: list[str]) -> None:
    """An OCI bundle as `crun spec` writes it, running ``argv`` without a terminal."""
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["crun", "spec"], cwd=directory, check=True, stderr=subprocess.DEVNULL)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["process"].update(args=argv, terminal=False)
    config["root"] = {"path": str(rootfs), "readonly": True}
    path.write_text(json.dumps(config))


def run(argv: list[str], cwd: Path | None = None) -> None:
    subprocess.run(
        argv,
        cwd=cwd,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def crun_container(bundle: Path, name: str) -> Iterator[None]:
    """A running container in which `crun exec` can be timed."""
    run(["crun", "run", "--detach", name], cwd=bundle)
    try:
        yield
    finally:
        run(["crun", "delete", "--force", name])
