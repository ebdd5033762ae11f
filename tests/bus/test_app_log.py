"""The app's own log says why a start or a staging failed, since the developer cannot read the agent's log."""

from __future__ import annotations

import signal
import tarfile
from typing import Any

import pytest
from bad_input_kit import add_special, tar_droplet
from driver import App, Host
from driver_apps import Droplet
from staging_kit import Desk, buildpack
from test_staging_replies import live_output

pytestmark = pytest.mark.bus


async def app_log(host: Host, app: App) -> str:
    """The lines of the platform's in what `garrison logs` shows."""
    lines = await host.control_lines(f"/v1/apps/{app.id}/logs")
    return "".join(line["data"] for line in lines if line["stream"] == "sys")


def fifo(archive: tarfile.TarFile) -> None:
    add_special(archive, "./app/pipe", tarfile.FIFOTYPE)


async def failed(host: Host, droplet: Droplet | None = None, **changes: Any) -> tuple[App, str]:
    app = host.make_app("fails") if droplet is None else host.make_app("fails", droplet=droplet)
    await host.start(app, **changes)
    await host.wait_state(app, "CRASHED")
    return app, await app_log(host, app)


async def test_a_droplet_that_cannot_be_had(host: Host) -> None:
    """The address that was asked, without the credentials and the signature in it; kept over a restart of the agent."""
    url = f"http://cc:s3cret@127.0.0.1:{host.files.port}/droplets/gone?Signature=signed"
    app, told = await failed(host, executableUri=url, sha1="0" * 40)
    assert f"http://127.0.0.1:{host.files.port}/droplets/gone: Error downloading: HTTP status: 404\n" in told
    assert "failed to start, exit status -1" in told
    for secret in ("s3cret", "signed", "cc:", str(host.base_dir)):
        assert secret not in told

    host.running.signal(signal.SIGKILL)
    await host.running.wait_exited()
    await host.start_agent()
    await host.wait_state(app, "CRASHED")
    assert await app_log(host, app) == told


async def test_what_is_wrong_with_a_droplet(host: Host) -> None:
    """The member that is refused, the format that is none."""
    assert "app/pipe: a FIFO" in (await failed(host, tar_droplet(fifo)))[1]
    assert "gzip" in (await failed(host, Droplet(b"\x1f\x8b\x08 no gzip")))[1]


async def test_a_variable_that_the_kernel_does_not_take(host: Host) -> None:
    """Its name and size, not its value."""
    _, told = await failed(host, env=["SMALL=1", "LARGE=" + "s3cret" * 30_000])
    assert "environment: LARGE has 180006 bytes" in told
    assert "s3cret" not in told


async def test_a_staging_that_fails(host: Host) -> None:
    """In its own output and in the app's log, until a later staging succeeds."""
    desk = Desk(host)
    app = desk.app()
    url = f"http://cc:s3cret@127.0.0.1:{host.files.port}/packages/gone?Signature=signed"
    staging = await desk.stage(app=app, download_uri=url)
    await staging.reply(2)
    told = await app_log(host, app)
    live = (await live_output(host, staging.task_id)).decode()
    assert told == "Staging failed: Error staging: Error downloading: HTTP status: 404\n"
    assert told in live
    assert f"cannot be downloaded from http://127.0.0.1:{host.files.port}/packages/gone: " in live
    for one in (told, live, *map(str, staging.replies())):
        assert not [secret for secret in ("s3cret", "signed", str(host.base_dir)) if secret in one]

    unread = buildpack(compile='mkdir "$1/closed"; chmod 0 "$1/closed"')
    second = await (await desk.stage(desk.pack("unread", unread), app=app)).reply(2)
    assert "tar: ./app/closed: " in second["error_info"]["message"]
    assert "tar: ./app/closed: " in await app_log(host, app)

    await (await desk.stage(desk.pack("good", buildpack()), app=app)).reply(2)
    assert await app_log(host, app) == ""


async def test_a_staging_that_ran_out_of_memory(host: Host) -> None:
    """The kernel's kill is named, with the limit."""
    desk = Desk(host)
    hungry = buildpack(compile="tail /dev/zero")
    staging = await desk.stage(desk.pack("hungry", hungry), memory_limit=64)
    second = await staging.reply(2)
    assert second["error_info"]["type"] == "BuildpackCompileFailed"
    assert "out of memory" in second["error_info"]["message"]
    assert "out of memory" in await app_log(host, staging.app)
