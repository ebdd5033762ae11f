"""Starts one `garrison up` for the end-to-end tests, in its own namespaces. It must leave nothing on the host."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from host_fixtures import test_host

from agent.dev.traces import adopt_orphans, look, settled

__all__ = ["test_host"]  # a fixture by import
ROOT = Path(__file__).resolve().parents[2]


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


class Running:
    """A command into a pipe: `see` waits for words in what it prints, `end` for its exit status."""

    def __init__(self, *words: str | Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.text = ""

    def see(self, words: str) -> None:
        assert self._process.stdout is not None
        while words not in self.text:
            line = self._process.stdout.readline()
            assert line, f"it ended without {words!r}:\n{self.text}"
            self.text += line

    def end(self) -> int:
        self.text += self._process.communicate(timeout=180)[0]
        return self._process.returncode

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


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
        return self.fetch(app, path)[:2]

    def fetch(
        self, app: str, path: str = "/", headers: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[int, bytes, Mapping[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Host": f"{app}.localhost", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.headers)
        finally:
            connection.close()

    @contextlib.contextmanager
    def start(self, verb: str, *words: str | Path) -> Iterator[Running]:
        """Starts a command whose output is read while it runs."""
        running = Running(verb, "--state", self.state, *words)
        try:
            yield running
        finally:
            running.stop()

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
