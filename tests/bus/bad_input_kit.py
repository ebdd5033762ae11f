"""Shared by the tests of bad input: invalid droplets, and checks of what a failed start leaves behind."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
import time
from collections.abc import Callable
from typing import Any

from driver import App, Host, poll
from driver_apps import Droplet

Fill = Callable[[tarfile.TarFile], None]
SMALL = {"mem": 64, "disk": 32, "fds": 256}


def tar_droplet(fill: Fill) -> Droplet:
    """A droplet with the members that ``fill`` adds."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        fill(archive)
    return Droplet(gzip.compress(buffer.getvalue(), mtime=0))


def add_file(
    archive: tarfile.TarFile,
    name: str,
    data: bytes = b"",
    mode: int = 0o644,
    pax: dict[str, str] | None = None,
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.pax_headers = len(data), mode, pax or {}
    archive.addfile(member, io.BytesIO(data))


def add_special(
    archive: tarfile.TarFile, name: str, kind: bytes, target: str = "", mode: int = 0o644
) -> None:
    """Add a link, device, FIFO or directory to the archive."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, target, mode
    member.devmajor, member.devminor = 1, 3
    archive.addfile(member)


def droplet_with_info(info: bytes) -> Droplet:
    """An app whose start command is in ``info``, its staging_info.yml, and nowhere else."""

    def fill(archive: tarfile.TarFile) -> None:
        add_file(archive, "./app/mark", info[:32])
        add_file(archive, "./staging_info.yml", info)

    return tar_droplet(fill)


async def exit_of(host: Host, app: App, *, since: int = 0, within_s: float = 40.0) -> dict[str, Any]:
    """The exit message of the app's instance."""
    said = await host.peer.wait_for(
        "droplet.exited", lambda body: body["droplet"] == app.id, since=since, within_s=within_s
    )
    return dict(said.body)


def told(exit_message: dict[str, Any]) -> tuple[str, int]:
    """The fields of an exit message that depend on how the instance ended."""
    assert exit_message["reason"] == "CRASHED"
    return exit_message["exit_description"], exit_message["exit_status"]


def causes_of(host: Host, app: App) -> list[str]:
    """The causes of its failed starts, from the agent's log."""
    return [line["error"] for line in host.running.log("instance_start_failed", app=app.id)]


def words_about(host: Host, app: App, since: int = 0) -> list[str]:
    """The subjects of the agent's messages that name the app, without heartbeats and adverts, which list every app."""
    return [
        one.subject
        for one in host.peer.heard[since:]
        if app.id.encode() in one.payload and one.subject not in ("dea.heartbeat", "dea.advertise")
    ]


async def output_of(host: Host, app: App, index: int = 0) -> str:
    """The output of an instance so far."""
    lines = await host.control_lines(f"/v1/apps/{app.id}/logs")
    return "".join(line.get("data", "") for line in lines if line.get("index") == index)


async def wait_output(host: Host, app: App, text: str, within_s: float = 20.0) -> str:
    """Waits until the app's output has ``text``. Returns the whole output."""
    deadline = time.monotonic() + within_s
    while text not in (said := await output_of(host, app)):
        assert time.monotonic() < deadline, f"{app.name} did not say {text!r} but {said!r}"
        await asyncio.sleep(0.05)
    return said


async def half_made_layers(host: Host) -> list[str]:
    """The files of refused droplets that are left. There are none once the trash has been emptied."""

    def look() -> list[str]:
        found = [*(host.base_dir / "layers").glob(".new-*"), *(host.base_dir / "trash").iterdir()]
        return [str(path.relative_to(host.base_dir)) for path in found]

    await poll(lambda: not look(), 15)
    return look()
