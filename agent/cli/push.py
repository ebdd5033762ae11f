"""`garrison push`: from a directory to a URL."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from agent.cli import package, reach, ui
from agent.cli.apps import url
from agent.cli.staging import stage
from agent.cli.wait import wait_running

# Above either of these the user is asked whether it is the right directory.
ASK_BYTES, ASK_FILES = 512 << 20, 50_000
# The least disk of a staging (agent/dev/messages.py); it has more with a larger --disk.
STAGING_DISK_MB = 2048
BACK_TO_DEFAULT = ("", "default", "null")


@click.command("push")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--name", metavar="APP", help="The app's name [the directory's].")
@click.option("--instances", "-i", type=click.IntRange(0, 1000), help="How many instances run [1].")
@click.option(
    "--memory", "-m", type=ui.Size(), metavar="SIZE", help="Limit of each instance, like 64M or 1G [256M]."
)
@click.option("--disk", type=ui.Size(), metavar="SIZE", help="Limit of each instance [1G].")
@click.option(
    "--buildpack",
    "-b",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    help="python, staticfile or procfile; without a NAME: the first that recognises the app, the default.",
)
@click.option(
    "--command",
    "start_command",
    is_flag=False,
    flag_value="",
    metavar="[LINE]",
    help="The start command; without a LINE: the buildpack's own, the default.",
)
@click.option(
    "--env", "-e", multiple=True, metavar="KEY=VALUE", help="Sets a variable of the app; may be repeated."
)
@click.option("--unset-env", multiple=True, metavar="KEY", help="Removes a variable; may be repeated.")
@click.option(
    "--timeout", "timeout_s", default=90.0, show_default=True, help="Seconds to wait until the app runs."
)
@click.option("--quiet", "-q", is_flag=True, help="Do not print the buildpack's output.")
@click.option("--yes", is_flag=True, help="Do not ask, however large the directory is.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result, or the failure, as one JSON document."
)
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
    unset_env: tuple[str, ...],
    timeout_s: float,
    quiet: bool,
    yes: bool,
    as_json: bool,
    state_dir: Path,
) -> None:
    """Uploads DIRECTORY, stages it with a buildpack, starts the app, and prints its URL.

    Files that match a .cfignore (or, where there is none, a .gitignore) are left out. Settings without an option keep their
    values. New settings and new code take effect together, once the staging has succeeded.
    """
    if not directory.is_dir():
        raise ui.Failure(f"cannot push {directory}", "it is not a directory", "", ui.USAGE)
    app = name or app_name(directory.resolve().name)
    if app != app_name(app):
        raise ui.Failure(f"{app!r} cannot be a host name", "", f"try --name {app_name(app)}", ui.USAGE)
    given = {"instances": instances, "memory_mb": memory, "disk_mb": disk}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    for key, text in (("buildpack", buildpack), ("command", start_command)):
        if text is not None:
            changes[key] = None if text in BACK_TO_DEFAULT else text
    changes |= {"set_env": _environment(env), "unset_env": unset_env}
    peer, agent = reach.controller(state_dir), reach.agent(state_dir, has_config=False)
    with tempfile.TemporaryFile() as archive:
        with _interruptible(peer, app, "nothing was changed"):
            limits = _check_before(peer, app, disk)
            packed = _pack(directory, archive, limits, yes=yes)
        with _pushing(peer, app, changes) as path:
            _upload(peer, path, archive, packed)
            staged = stage(peer, path, agent, app, quiet=quiet)
    with _interruptible(peer, app, "it is staged and still starts"):
        row = wait_running(peer, agent, app, timeout_s, "Starting")
    address = url(row, reach.gateway_port(state_dir))
    if as_json:
        ui.emit_json({"name": app, "guid": row["guid"], "url": address, **staged})
    else:
        ui.report()
        print(f"  {ui.paint(address, 'cyan')}")


def app_name(text: str) -> str:
    """``text`` as a host name: other characters become hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].rstrip("-") or "app"


def _environment(pairs: tuple[str, ...]) -> dict[str, str]:
    """The variables of `--env`. Any name that the kernel takes is valid, also one that a shell does not take: `spring.profiles`."""
    for pair in pairs:
        if not re.match(r"[^=\s]+=", pair):
            raise ui.Failure(f"--env {pair}", "expected KEY=VALUE", "", ui.USAGE)
        try:
            pair.encode()
        except UnicodeEncodeError:
            raise ui.Failure(f"--env {pair}", "expected UTF-8", "", ui.USAGE) from None
    return dict(pair.split("=", 1) for pair in pairs)


class _Limits:
    """The largest push that the platform takes, in bytes: of the files, and of the zip."""

    def __init__(self, content_bytes: int, upload_bytes: int) -> None:
        self.content_bytes, self.upload_bytes = content_bytes, upload_bytes


def _check_before(peer: reach.Peer, app: str, disk_mb: int | None) -> _Limits:
    """Fails before anything is packed if the push would be refused later."""
    info = peer.call("GET", "/v1/info")
    row = next((row for row in peer.call("GET", "/v1/apps") if row["name"] == app), None)
    if row is not None and row["pushing"]:
        raise ui.Failure(
            f"cannot push {app}", "it is being pushed already; nothing was changed", "see: garrison apps"
        )
    kept_mb = row["disk_limit_bytes"] >> 20 if row is not None else 0
    return _Limits(max(STAGING_DISK_MB, disk_mb or kept_mb) << 20, info["max_upload_bytes"])


@contextlib.contextmanager
def _interruptible(peer: reach.Peer, app: str, what: str) -> Iterator[None]:
    """A Ctrl-C within the block becomes a Failure with the present state of the app. ``what``: what the push has done."""
    try:
        yield
    except KeyboardInterrupt:
        ui.report()
        row = next((row for row in peer.call("GET", "/v1/apps") if row["name"] == app), None)
        now = f"there is no app {app}"
        if row is not None:
            now = f"{app} is {row['state']}, {row['running']} of {row['instances']} running"
        raise ui.Failure(f"push of {app} interrupted", what, now, ui.INTERRUPTED) from None


@contextlib.contextmanager
def _pushing(peer: reach.Peer, app: str, changes: dict[str, Any]) -> Iterator[str]:
    """Claims the app for a push and yields the push's path. If the block ends early, everything of the push is removed."""
    claim = peer.call("POST", f"/v1/apps/{app}/pushes", changes)
    path = f"/v1/apps/{app}/pushes/{claim['push']}"
    for variable in claim["not_set"]:
        ui.report(f"{'Note':<12}--unset-env {variable}: it was not set")
    with _interruptible(peer, app, "nothing was changed"):
        try:
            yield path
        except BaseException:
            with contextlib.suppress(reach.Refusal):  # the push has ended already
                peer.call("DELETE", path)
            raise


def _pack(directory: Path, archive: IO[bytes], limits: _Limits, *, yes: bool) -> str:
    """Packs the directory into ``archive``; returns the text for the progress line."""
    line = ui.MovingLine()
    lead = f"{'Uploading':<12}{ui.shortened(str(directory))}   "

    def looking(files: int, content_bytes: int) -> None:
        line.show(f"{lead}{ui.count(files, 'file')}, {ui.size(content_bytes)} so far")

    try:
        found = package.scan(directory, looking, limits.content_bytes)
        total = ui.size(found.content_bytes)
        if found.files == 0:
            raise ui.Failure(f"cannot push {directory}", "it has no files", "", ui.USAGE)
        if found.content_bytes > ASK_BYTES or found.files > ASK_FILES:
            line.clear()
            ui.confirm(f"{directory} has {ui.count(found.files, 'file')}, {total}", yes)
        package.write_zip(
            found.entries, archive, lambda done: line.show(f"{lead}packing {ui.size(done)} of {total}")
        )
        length = archive.tell()
        if length > limits.upload_bytes:
            raise ui.Failure(
                f"cannot push {directory}",
                f"the packed files have {ui.size(length)}; the limit is {ui.size(limits.upload_bytes)}",
                "leave files out with a .cfignore",
                ui.USAGE,
            )
    finally:
        line.clear()
    by_git = ", without files of .gitignore" if ".gitignore" in found.ignore_files else ""
    return f"{lead}{ui.count(found.files, 'file')}, {total}{by_git}"


def _upload(peer: reach.Peer, path: str, archive: IO[bytes], packed: str) -> None:
    began = time.monotonic()
    line = ui.MovingLine()
    length = archive.tell()
    archive.seek(0)
    body = _Counted(
        archive, length, lambda sent: line.show(f"{packed}, {ui.size(sent)} of {ui.size(length)} sent")
    )
    with peer.open("PUT", f"{path}/package", body, timeout_s=120) as response:  # type: ignore[arg-type]
        response.read()
    line.finish(ui.with_time(packed, time.monotonic() - began))


class _Counted:
    """A file that reports how much of it was read. http.client reads it block by block."""

    def __init__(self, file: IO[bytes], length: int, progress: Any) -> None:
        self._file, self._length, self._progress = file, length, progress

    def __len__(self) -> int:
        return self._length

    def read(self, count: int = -1) -> bytes:
        block = self._file.read(count)
        self._progress(self._file.tell())
        return block
