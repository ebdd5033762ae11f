"""`garrison push`: from a directory to a URL."""

from __future__ import annotations

import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

import click

from agent.cli import package, reach, ui
from agent.cli.apps import url
from agent.cli.wait import wait_running

INDENT = " " * 12
LOG_APPEARS_S = 15.0


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
    _upload(peer, app, directory, changes)
    staged = _stage(peer, reach.agent(state_dir, None), app, quiet)
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
    line.finish(ui.with_time(f"{lead}{files} files, {ui.size(total)}", time.monotonic() - began))


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
        match event["event"]:
            case "task" if not quiet:
                live = LiveOutput(agent, event["task_id"], moving)
                live.start()
            case "staged":
                if live is not None:
                    live.finish()
                moving.clear()
                size, sha1 = ui.size(event["droplet_bytes"]), event["droplet_sha1"][:7]
                spent = time.monotonic() - began
                if quiet:
                    ui.tell(f"{'Staging':<12}{event['buildpack'] or 'own'} buildpack")
                ui.tell(ui.with_time(f"{INDENT}droplet {size}, sha1 {sha1}", spent))
                return {key: value for key, value in event.items() if key != "event"}
            case "failed":
                if live is not None:
                    live.finish()
                moving.clear()
                raise _staging_failed(event, time.monotonic() - began)
    raise ui.Failure("staging ended without a word", "", "see dev.log and agent.log in the state directory")


def _staging_failed(event: dict[str, Any], spent: float) -> ui.Failure:
    import buildpacks

    ui_line = f"Staging     failed after {spent:.1f} s"
    match event["type"]:
        case "NoAppDetectedError":
            tried = ", ".join(f"{name} ({buildpacks.LOOKS_FOR[name]})" for name in buildpacks.ORDER)
            ui.tell(f"{ui_line}: no buildpack recognised the app")
            hint = f"tried: {tried}\n       name one with --buildpack, or add one of these files."
            return ui.Failure("not staged", "no buildpack recognised the app", hint)
        case "InsufficientResources" | "NoCompatibleCell":
            ui.tell(f"{ui_line}: {event['error']}")
            return ui.Failure("not staged", event["error"], "stop an app, or push with less --memory")
        case _:
            ui.tell(f"{ui_line}: {event['error']}")
            return ui.Failure("not staged", event["error"], "the lines above are the buildpack's own")


class LiveOutput(threading.Thread):
    """The buildpack's output from the agent's control socket, line by line, while the staging goes on."""

    def __init__(self, agent: reach.Peer, task_id: str, moving: ui.MovingLine) -> None:
        super().__init__(name="staging-output", daemon=True)
        self._agent, self._task_id, self._moving = agent, task_id, moving
        self._over = threading.Event()
        self._rest = b""

    def run(self) -> None:
        deadline = time.monotonic() + LOG_APPEARS_S
        while True:
            try:
                for event in self._agent.lines("GET", f"/v1/staging/{self._task_id}/log", follow="1"):
                    self._show(event)
                return
            except reach.Refusal as refusal:
                # The task is told of before the agent has it.
                if refusal.http_status != 404 or self._over.is_set() or time.monotonic() > deadline:
                    return
                self._over.wait(0.05)
            except (ui.Failure, OSError, ValueError) as lost:
                ui.tell(f"{INDENT}(the live output is lost: {lost}; the staging goes on)")
                return

    def _show(self, event: dict[str, Any]) -> None:
        data = self._rest + reach.event_bytes(event)
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            self._print(line)

    def _print(self, line: bytes) -> None:
        self._moving.clear()
        print(INDENT + reach.printable(line), file=sys.stderr, flush=True)

    def finish(self) -> None:
        self._over.set()
        self.join(3)
        if self._rest:
            self._print(self._rest)
            self._rest = b""
