"""A container that others have damaged is a crash of its instance: routes go, the exit is published, a restart may follow."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from driver import Host, poll

pytestmark = pytest.mark.bus


def snapshot_of(host: Host) -> dict[str, object]:
    """Of the one container that there is."""
    (handle,) = host.containers()
    found: dict[str, object] = json.loads((host.base_dir / "depot" / handle / "snapshot.json").read_text())
    return found


def delete_link(host: Host) -> None:
    subprocess.run(("ip", "link", "del", f"w-{snapshot_of(host)['link_id']}-0"), check=True)


async def is_a_crash(host: Host, instance: object, description: str, since: int) -> None:
    """Whose process ran until then: the container and all that it held are gone afterwards."""
    exited = await host.peer.wait_for("droplet.exited", since=since)
    assert exited.body["instance"] == instance
    assert (exited.body["reason"], exited.body["exit_status"]) == ("CRASHED", -1)
    assert exited.body["exit_description"] == description
    await host.peer.wait_for("router.unregister", since=since)
    await host.wait_depot_empty()


async def test_a_deleted_link_is_a_crash(host: Host) -> None:
    """The next start of the app is none the worse."""
    app = host.make_app("shop")
    running, since = await host.run(app), host.peer.mark

    delete_link(host)

    await is_a_crash(host, running["instance"], "container broken: its network link was deleted", since)
    again = await host.run(app)
    assert "PORT" in await host.environment_of(again["stats"]["port"])


async def test_a_link_deleted_while_no_agent_ran_is_a_crash_too(host: Host) -> None:
    app = host.make_app("shop")
    running, since = await host.run(app), host.peer.mark
    await host.stop_agent(signal.SIGKILL)
    delete_link(host)

    await host.start_agent()

    await is_a_crash(host, running["instance"], "container broken: its network link was deleted", since)


async def test_a_process_moved_out_of_its_cgroup_is_limited_again(host: Host) -> None:
    """Nothing is published: the app runs on."""
    app = host.make_app("shop")
    running, since = await host.run(app), host.peer.mark
    pid = int(str(snapshot_of(host)["pid"]))
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    before = Path(f"/proc/{child}/cgroup").read_text()
    subprocess.run(
        (
            "sh",
            "-c",
            f"for f in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do echo {child} > $f; done",
        ),
        stderr=subprocess.DEVNULL,
    )
    assert Path(f"/proc/{child}/cgroup").read_text() != before

    await poll(lambda: Path(f"/proc/{child}/cgroup").read_text() == before, 5)

    assert Path(f"/proc/{child}/cgroup").read_text() == before
    await host.running.wait_log("process_put_back_into_cgroup", pid=int(child))
    assert host.peer.on("droplet.exited", since) == []
    assert (await host.find(app))[0]["instance"] == running["instance"]
