"""One `garrison up` for the end-to-end tests, in namespaces of its own; it must leave nothing."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.dev.traces import adopt_orphans, look, settled

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def own_namespaces() -> None:
    """Firewall and links of the tests are not the machine's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
        pytest.fail(f"unshare: {os.strerror(ctypes.get_errno())}; the end-to-end tests need root")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    _sysfs_of_this_network()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # A host has an address of its own beside loopback: the agent tells it to the router.
    subprocess.run(["ip", "link", "add", "uplink0", "type", "veth", "peer", "name", "uplink1"], check=True)
    subprocess.run(["ip", "address", "add", "192.0.2.1/24", "dev", "uplink0"], check=True)
    for end in ("uplink0", "uplink1"):
        subprocess.run(["ip", "link", "set", end, "up"], check=True)
    subprocess.run(["ip", "route", "add", "default", "via", "192.0.2.254"], check=True)


def _sysfs_of_this_network() -> None:
    """/sys/class/net shows the namespace that sysfs was mounted in; the cgroups below it are carried over."""
    with tempfile.TemporaryDirectory() as aside:
        subprocess.run(["mount", "--rbind", "/sys/fs/cgroup", aside], check=True)
        subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
        subprocess.run(["mount", "--rbind", aside, "/sys/fs/cgroup"], check=True)
        subprocess.run(["umount", "--lazy", aside], check=True)


def garrison(*words: str | Path, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        env={**os.environ, **env},
        check=False,
    )


@dataclass
class Platform:
    state: Path
    port: int

    def run(self, verb: str, *words: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return garrison(verb, "--state", self.state, *words, timeout=timeout)

    def ok(self, verb: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        done = self.run(verb, *words)
        assert done.returncode == 0, (
            f"{verb}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.agent_log()}"
        )
        return done

    def apps(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in json.loads(self.ok("apps", "--json").stdout)}

    def get(self, app: str, path: str = "/") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Host": f"{app}.localhost"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def agent_log(self) -> str:
        return "\n".join((self.state / "agent.log").read_text(errors="replace").splitlines()[-30:])


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    adopt_orphans()
    state = tmp_path_factory.mktemp("up")
    before = look(state)
    command = [
        sys.executable,
        "-m",
        "agent",
        "up",
        "--state",
        str(state),
        "--gateway-port",
        "0",
        "--bus-port",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (state / "up.json").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"garrison up did not come up:\n{process.communicate()[0]}")
            time.sleep(0.05)
        yield Platform(state, json.loads((state / "up.json").read_text())["gateway_port"])
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    left = settled(state, before, 15)
    assert not left, f"left behind: {left}"
    shutil.rmtree(state)
