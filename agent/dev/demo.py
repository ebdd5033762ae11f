"""`make demo`: runs the commands of the README as a user would, and checks that nothing is left on the host afterwards.

It starts `garrison up` on free ports with its own state directory, runs the commands, checks their results, and compares the host
before and after. It ends with exit status 0 and the line `demo: OK`, or with the first check that failed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.dev.traces import adopt_orphans, look, settled

APP = Path(__file__).resolve().parents[2] / "examples" / "hello-flask"
READY_S = 120.0
GONE_S = 15.0
STOP_S = 60.0


class DemoFailed(Exception):
    """A check failed; the message names it."""


def main() -> int:
    if os.geteuid() != 0:
        print("demo: containers need root", file=sys.stderr)
        return 2
    adopt_orphans()
    state = Path(tempfile.mkdtemp(prefix="garrison-demo-", dir="/var/tmp"))  # /tmp may be a tmpfs
    before = look(state)
    try:
        with _garrison_up(state) as port:
            _main_job(state, port)
        _step("nothing is left")
        left = settled(state, before, GONE_S)
        if left:
            raise DemoFailed("left behind:\n  " + "\n  ".join(left))
        print("  mounts, links, firewall rules, cgroups, loop devices, processes: as before")
    except (DemoFailed, subprocess.SubprocessError, OSError) as error:
        print(f"demo: FAILED: {error}", file=sys.stderr)
        for name in ("agent.log", "dev.log"):
            if (state / name).exists():
                kept = Path(tempfile.gettempdir()) / f"garrison-demo-{name}"
                shutil.copy(state / name, kept)
                print(f"demo: kept {kept}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(state, ignore_errors=True)
    print("demo: OK")
    return 0


def _main_job(state: Path, port: int) -> None:
    if not (APP / "vendor").is_dir():
        raise DemoFailed("the example's wheels are missing: run examples/vendor.sh")

    _step("garrison push examples/hello-flask --name hello --instances 2 --memory 64M")
    _garrison(state, "push", str(APP), "--name", "hello", "--instances", "2", "--memory", "64M")

    _step("garrison apps")
    _garrison(state, "apps")
    app = _app(state)
    _must(app["state"] == "running" and app["running"] == 2, f"two instances run: {app}")

    _step(f"curl http://hello.localhost:{port}/ (through the gateway)")
    seen = {}
    for _ in range(20):
        page = _get("127.0.0.1", port, "/env.json", host=f"hello.localhost:{port}")
        facts = json.loads(page)
        seen[facts["index"]] = facts
        if len(seen) == 2:
            break
    _must(set(seen) == {0, 1}, f"the gateway reaches both instances: {sorted(seen)}")
    _must(seen[0]["memory_limit"] == "64m", f"MEMORY_LIMIT is 64m: {seen[0]['memory_limit']}")
    application = seen[1]["application"]
    _must(application["application_name"] == "hello", f"VCAP_APPLICATION names the app: {application}")
    _must(application["instance_index"] == 1, f"VCAP_APPLICATION has the index: {application}")
    print(_indent("\n".join(_get("127.0.0.1", port, "/", host="hello.localhost").splitlines()[:2])))

    endpoint = app["endpoints"][0].removeprefix("http://")
    _step(f"curl http://{endpoint}/ (the published port of the host)")
    address, _, host_port = endpoint.rpartition(":")
    print(_indent(_get(address, int(host_port), "/", host=endpoint).splitlines()[0]))

    _step("garrison shell hello/0 -- sh -c 'id -un; hostname; exit 3'")
    shell = _run(state, "shell", "hello/0", "--", "sh", "-c", "id -un; hostname; exit 3", check=False)
    print(_indent(shell.stdout))
    _must(shell.returncode == 3, f"the command's exit status comes back: {shell.returncode} {shell.stderr}")
    _must(shell.stdout.splitlines()[:1] == ["vcap"], f"it runs as vcap: {shell.stdout!r}")

    _step("garrison logs hello")
    logs = _run(state, "logs", "hello")
    _must("GET /env.json" in logs.stdout, f"the app's output is there: {logs.stdout[-500:]!r}")
    print(_indent("\n".join(logs.stdout.splitlines()[-3:])))

    _step("garrison scale hello 1")
    _garrison(state, "scale", "hello", "1")
    _must(_app(state)["running"] == 1, "one instance runs")
    _must(_get("127.0.0.1", port, "/", host="hello.localhost").startswith("Hello"), "it still answers")

    _step("garrison stop hello")
    _garrison(state, "stop", "hello")
    _until(lambda: _status("127.0.0.1", port, host="hello.localhost") == 404, "its route is gone")
    _garrison(state, "apps")


@contextlib.contextmanager
def _garrison_up(state: Path) -> Iterator[int]:
    """Runs `garrison up` and yields the port of its gateway. It is stopped by SIGINT, as by a user's Ctrl-C."""
    _step("garrison up")
    command = _command(state, "up", "--gateway-port", "0", "--bus-port", "0")
    process = subprocess.Popen(command, stdout=sys.stdout, stderr=sys.stderr, process_group=0)
    try:
        up_file = state / "up.json"
        deadline = time.monotonic() + READY_S
        while not up_file.exists():
            if process.poll() is not None:
                raise DemoFailed(f"garrison up ended with status {process.returncode}")
            if time.monotonic() > deadline:
                raise DemoFailed(f"garrison up is not ready after {READY_S:.0f} s")
            time.sleep(0.05)  # a poll: for other programs the file is the only sign that `up` is ready
        yield int(json.loads(up_file.read_text())["gateway_port"])
        _step("Ctrl-C")
    finally:
        status = _stop(process)
    if status != 0:
        raise DemoFailed(f"garrison up ended with status {status}")


def _stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise DemoFailed(f"garrison up did not stop within {STOP_S:.0f} s") from None


def _command(state: Path, *arguments: str) -> list[str]:
    verb, *rest = arguments
    return [sys.executable, "-m", "agent", verb, "--state", str(state), *rest]


def _run(state: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        _command(state, *arguments), capture_output=True, text=True, timeout=300, check=False
    )
    if check and done.returncode != 0:
        raise DemoFailed(
            f"garrison {arguments[0]} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done


def _garrison(state: Path, *arguments: str) -> None:
    """Runs a command whose output goes to our own stdout and stderr, as a user sees it."""
    sys.stdout.flush()
    done = subprocess.run(_command(state, *arguments), timeout=300, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"garrison {arguments[0]} ended with status {done.returncode}")


def _app(state: Path) -> dict[str, Any]:
    rows = json.loads(_run(state, "apps", "--json").stdout)
    row = next((row for row in rows if row["name"] == "hello"), None)
    if row is None:
        raise DemoFailed("garrison apps does not show hello")
    assert isinstance(row, dict)
    return row


def _request(address: str, port: int, path: str, host: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def _get(address: str, port: int, path: str, *, host: str) -> str:
    status, text = _request(address, port, path, host)
    _must(status == 200, f"GET {path} of {host} at {address}:{port} is 200: {status} {text[:300]}")
    return text


def _status(address: str, port: int, *, host: str) -> int:
    return _request(address, port, "/", host)[0]


def _until(true: Callable[[], bool], what: str) -> None:
    """A poll: the demo checks from outside, as a user does, and gets no events."""
    deadline = time.monotonic() + GONE_S
    while not true():
        _must(time.monotonic() < deadline, f"within {GONE_S:.0f} s: {what}")
        time.sleep(0.1)


def _must(true: bool, what: str) -> None:
    if not true:
        raise DemoFailed(f"expected that {what}")


def _step(text: str) -> None:
    print(f"\n$ {text}", flush=True)


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
