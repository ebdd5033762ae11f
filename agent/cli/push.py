"""`garrison push`: from a directory to a URL."""

from __future__ import annotations

import contextlib
import http.client
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from agent.cli import package, reach, ui
from agent.cli.apps import url
from agent.cli.wait import wait_running

INDENT = " " * 12
LOG_APPEARS_S = 15.0
LAST_LINES = 10  # of a quiet push that fails


@click.command("push")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--name", metavar="APP", help="The app's name [the directory's].")
@click.option("--instances", "-i", type=click.IntRange(0, 1000), help="How many run [1].")
@click.option(
    "--memory", "-m", type=ui.Size(), metavar="SIZE", help="Limit of each instance, like 64M or 1G [256M]."
)
@click.option("--disk", type=ui.Size(), metavar="SIZE", help="Limit of each instance [1G].")
@click.option(
    "--buildpack", "-b", metavar="NAME", help="python, staticfile or procfile; else the first that fits."
)
@click.option("--command", "start_command", metavar="LINE", help="Start command instead of the buildpack's.")
@click.option(
    "--env", "-e", multiple=True, metavar="KEY=VALUE", help="Environment of the app; may be repeated."
)
@click.option(
    "--timeout", "timeout_s", default=90.0, show_default=True, help="Seconds to wait for it to run."
)
@click.option("--quiet", "-q", is_flag=True, help="Without the buildpack's output.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON document.")
@reach.state_option
def command(
    directory: Path,
    name: str | None,
    instances: int | None,
    memory: int | None,
    disk: int | None,
    buildpack: str | None,
    start_command: str | None,
    env: tuple[str, ...],
    timeout_s: float,
    quiet: bool,
    as_json: bool,
    state_dir: Path,
) -> None:
    """Uploads DIRECTORY, stages it with a buildpack, starts it, and prints where it answers."""
    if not directory.is_dir():
        raise ui.Failure(f"cannot push {directory}", "there is no such directory", "", ui.USAGE)
    app = name or app_name(directory.resolve().name)
    if app != app_name(app):
        raise ui.Failure(f"{app!r} cannot be a host name", "", f"what about --name {app_name(app)}", ui.USAGE)
    changes: dict[str, Any] = {
        key: value
        for key, value in {
            "instances": instances,
            "memory_mb": memory,
            "disk_mb": disk,
            "buildpack": buildpack,
            "command": start_command,
            "env": _environment(env) if env else None,
        }.items()
        if value is not None
    }
    peer = reach.controller(state_dir)
    peer.call("GET", "/v1/info")
    with _interruptible(peer, app, "its upload is broken off"):
        _upload(peer, app, directory, changes)
    with _interruptible(peer, app, "its staging is stopped"):
        staged = _stage(peer, reach.agent(state_dir, None), app, quiet)
    with _interruptible(peer, app, "it is staged, and goes on starting"):
        row = wait_running(peer, app, timeout_s, "Starting")
    address = url(row, reach.gateway_port(state_dir))
    if as_json:
        ui.emit_json({"name": app, "guid": row["guid"], "url": address, **staged})
    else:
        ui.tell()
        print(f"  {ui.paint(address, 'cyan')}")


def app_name(text: str) -> str:
    """What of `text` can be a host name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].rstrip("-") or "app"


def _environment(pairs: tuple[str, ...]) -> dict[str, str]:
    for pair in pairs:
        if not re.match(r"[A-Za-z_]\w*=", pair):
            raise ui.Failure(f"--env {pair}", "expected KEY=VALUE", "", ui.USAGE)
    return dict(pair.split("=", 1) for pair in pairs)


@contextlib.contextmanager
def _interruptible(peer: reach.Peer, app: str, what: str) -> Iterator[None]:
    """A Ctrl-C within the block says what state things are in now."""
    try:
        yield
    except KeyboardInterrupt:
        ui.tell()
        peer.call("DELETE", f"/v1/apps/{app}/stage")  # when none is under way: nothing
        row = peer.call("GET", f"/v1/apps/{app}")
        now = f"{row['state']}, {row['running']} of {row['instances']} running"
        raise ui.Failure(f"push of {app} interrupted", what, f"{app} is {now}", ui.INTERRUPTED) from None


def _upload(peer: reach.Peer, app: str, directory: Path, changes: dict[str, Any]) -> None:
    began = time.monotonic()
    line = ui.MovingLine()
    lead = f"{'Uploading':<12}{directory}   "
    with tempfile.TemporaryFile() as file:
        line.show(lead + "packing")
        files, total = package.write_zip(directory, file)
        if files == 0:
            line.clear()
            raise ui.Failure(f"cannot push {directory}", "there is no file in it", "", ui.USAGE)
        length = file.tell()
        file.seek(0)
        peer.call("PUT", f"/v1/apps/{app}", changes)
        body = _Counted(file, length, lambda sent: line.show(f"{lead}{ui.size(sent)} of {ui.size(length)}"))
        with peer.open("PUT", f"/v1/apps/{app}/package", body, timeout_s=120) as response:  # type: ignore[arg-type]
            response.read()
    line.finish(ui.with_time(f"{lead}{ui.count(files, 'file')}, {ui.size(total)}", time.monotonic() - began))


class _Counted:
    """A file that tells how much of it was read: http.client reads it block by block."""

    def __init__(self, file: IO[bytes], length: int, progress: Any) -> None:
        self._file, self._length, self._progress = file, length, progress

    def __len__(self) -> int:
        return self._length

    def read(self, count: int = -1) -> bytes:
        block = self._file.read(count)
        self._progress(self._file.tell())
        return block


def _stage(peer: reach.Peer, agent: reach.Peer, app: str, quiet: bool) -> dict[str, Any]:
    began = time.monotonic()
    live: LiveOutput | None = None
    moving = ui.MovingLine()
    moving.show("Staging")
    for event in peer.lines("POST", f"/v1/apps/{app}/stage"):
        if event["event"] == "task":
            live = LiveOutput(agent, event["task_id"], moving, quiet)
            live.start()
        elif event["event"] in ("staged", "failed"):
            if live is not None:
                live.finish()
            moving.clear()
            spent = time.monotonic() - began
            if event["event"] == "failed":
                if quiet and live is not None:
                    live.show_last()
                ui.tell(ui.with_time(f"{'Staging':<12}failed", spent))
                raise _staging_failed(app, event)
            lead = f"{'Staging':<12}" if quiet else INDENT
            size, sha1 = ui.size(event["droplet_bytes"]), event["droplet_sha1"][:7]
            ui.tell(ui.with_time(f"{lead}{event['buildpack']} buildpack, droplet {size}, sha1 {sha1}", spent))
            return {key: value for key, value in event.items() if key != "event"}
    raise ui.Failure("staging ended without a word", "", "see dev.log and agent.log in the state directory")


def _staging_failed(app: str, event: dict[str, Any]) -> ui.Failure:
    what = f"{app} is not staged"
    match event["type"]:
        case "NoAppDetectedError":
            hint = "name one with --buildpack, or add one of the files that are named above"
            return ui.Failure(what, "no buildpack recognised the app", hint)
        case "InsufficientResources" | "NoCompatibleCell":
            return ui.Failure(what, event["error"], "stop an app, or push with less --memory")
        case "BuildpackCompileFailed" | "BuildpackReleaseFailed":
            return ui.Failure(what, event["error"], "the lines above are the buildpack's own")
        case _:
            return ui.Failure(what, event["error"], "more in agent.log in the state directory")


class LiveOutput(threading.Thread):
    """The buildpack's output from the agent's control socket, line by line, while the staging goes on."""

    def __init__(self, agent: reach.Peer, task_id: str, moving: ui.MovingLine, quiet: bool) -> None:
        super().__init__(name="staging-output", daemon=True)
        self._agent, self._task_id, self._moving, self._quiet = agent, task_id, moving, quiet
        self._over = threading.Event()
        self._rest = b""
        self._lead = f"{'Staging':<12}"
        self._last: deque[bytes] = deque(maxlen=LAST_LINES)

    def run(self) -> None:
        deadline = time.monotonic() + LOG_APPEARS_S
        while True:
            last_try = self._over.is_set() or time.monotonic() > deadline
            try:
                for event in self._agent.lines("GET", f"/v1/staging/{self._task_id}/log", follow="1"):
                    self._show(event)
                return
            except reach.Refusal as refusal:
                # The task is told of before the agent has it.
                if refusal.http_status != 404 or last_try:
                    return
                self._over.wait(0.05)
            except (ui.Failure, OSError, ValueError, http.client.HTTPException) as lost:
                ui.tell(f"{INDENT}(the live output is lost: {lost}; the staging goes on)")
                return

    def _show(self, event: dict[str, Any]) -> None:
        data = self._rest + reach.event_bytes(event)
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            self._print(line)

    def _print(self, line: bytes) -> None:
        self._last.append(line)
        if not self._quiet:
            self._moving.clear()
            ui.tell(self._lead + reach.printable(line))
            self._lead = INDENT

    def finish(self) -> None:
        self._over.set()
        self.join(3)
        if self._rest:
            self._print(self._rest)
            self._rest = b""

    def show_last(self) -> None:
        for line in self._last:
            ui.tell(INDENT + reach.printable(line))
