"""Secrets are not published or logged: passwords of the bus, of droplets and of uploads, environments, service credentials."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from bad_input_kit import SMALL, exit_of
from conftest import OpenHost
from driver import Host
from driver_peer import Peer
from servers import nats_server
from staging_kit import Desk, buildpack

pytestmark = pytest.mark.bus

BUS, OTHER_BUS = "bus-Tr0ub4dor", "other-Tr0ub4dor"
URI, ODD_URI, PORTLESS, WORD, SERVICE, UPLOAD = (
    f"{name}-Xk9q2" for name in ("uri", "odd", "portless", "word", "service", "upload")
)


def cmdlines() -> str:
    """Of all processes that this test can see in the machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


async def fail_in_many_ways(host: Host) -> None:
    """Starts and stagings whose errors come close to an address or a credential."""
    port = host.files.port
    uris = {
        "404": f"http://user:{URI}@127.0.0.1:{port}/none",
        "nobody": f"http://user:{URI}@127.0.0.1:1/none",
        "odd": f"http://user:{ODD_URI}@x@127.0.0.1:{port}/none",
        "not-latin": f"http://пользователь:{ODD_URI}я@127.0.0.1:{port}/none",
        "slash": f"http://user:{ODD_URI}/y@127.0.0.1:{port}/none",
        "portless": f"http://user:{PORTLESS}@127.0.0.1:99999/none",
        "scheme": f"ftp://user:{URI}@127.0.0.1/none",
        "space": f"http://user:{URI} @127.0.0.1 x/none",
    }
    apps = []
    for number, uri in enumerate(uris.values()):
        app = host.make_app(f"app-{number}")
        apps.append(app)
        await host.start(app, limits=SMALL, executableUri=uri, env=[f"SECRET={WORD}"])
    for app in apps:
        await exit_of(host, app)
    desk = Desk(host)
    pack = desk.pack("any", buildpack())
    for upload in (f"http://user:{UPLOAD}@127.0.0.1:1/up", f"http://user:{UPLOAD}@127.0.0.1:99999/up"):
        staging = await desk.stage(pack, upload_uri=upload, buildpack_cache_upload_uri=upload)
        second = await staging.reply(2)
        assert UPLOAD not in str(second)
        assert second["error"].startswith("Error uploading")
    missing = await desk.stage(pack, download_uri=uris["404"])
    assert URI not in str((await missing.reply(2))["error"])


async def test_no_secret_is_in_the_log_or_in_a_command_line(hosts: OpenHost, base_dir: Path) -> None:
    """At level debug, through starts, failures, stagings, a lost bus and the end; what is kept is root's alone."""
    config = f'authorization {{ user: agent, password: "{BUS}" }}'
    async with nats_server(base_dir / "bus", config) as server:
        urls = [f"nats://agent:{BUS}@127.0.0.1:{server.port}", f"nats://agent:{OTHER_BUS}@127.0.0.1:1"]
        async with hosts(nats={"servers": urls}) as host:
            host.peer = await Peer.open(server.port, "agent", BUS)
            await host.start_agent()
            app = host.make_app("shop")
            service = {"name": "db", "label": "mysql", "credentials": {"uri": f"mysql://u:{SERVICE}@h/db"}}
            await host.run(app, limits=SMALL, env=[f"SECRET={WORD}"], services=[service])
            await fail_in_many_ways(host)
            seen_by_all = cmdlines()
            await host.peer.close()
            await server.kill()
            await host.running.wait_log("bus_unreachable", server="nats://127.0.0.1:1")
            await server.start()
            host.peer = await Peer.open(server.port, "agent", BUS)
            await host.peer.wait_for("dea.heartbeat")
            memory = host.base_dir / "db" / "agent.json"
            assert stat.S_IMODE(memory.stat().st_mode) == 0o600
            open_to_others = [
                path.name for path in host.base_dir.iterdir() if path.is_dir() and path.stat().st_mode & 0o077
            ]
            assert open_to_others == []
            await host.stop_agent()
            await host.peer.close()

        told = (base_dir / "agent.log").read_text() + (base_dir / "agent.out").read_text()
        secrets = (BUS, OTHER_BUS, URI, ODD_URI, PORTLESS, WORD, SERVICE, UPLOAD, "s3cret")
        assert [line for line in told.splitlines() if any(secret in line for secret in secrets)] == []
        assert [secret for secret in secrets if secret in seen_by_all] == []
