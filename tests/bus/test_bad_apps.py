"""Apps that misbehave: each affects only itself, has an exit as in docs/protocol.md, "Exits", and leaves nothing behind."""

from __future__ import annotations

import asyncio
import base64
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from bad_input_kit import (
    SMALL,
    add_file,
    add_special,
    exit_of,
    half_made_layers,
    tar_droplet,
    told,
    wait_output,
    words_about,
)
from conftest import OpenHost
from driver import Host, poll
from driver_apps import Droplet

pytestmark = pytest.mark.bus
NOT_HEALTHY = "failed to accept connections within health check timeout"


def pids_inside(host: Host) -> int:
    """Processes of all containers of this host, as their cgroups count them."""
    parent = host.settings["cgroup_parent"]
    places = (Path("/sys/fs/cgroup/pids") / parent, Path("/sys/fs/cgroup") / parent)
    return sum(
        int(path.read_text())
        for place in places
        for path in place.rglob("pids.current")
        if "job" in path.parts
    )


async def test_an_app_that_ends_by_itself_is_reported_with_its_status(host: Host) -> None:
    """A code is told as it is, a signal as 255; one that is gone before its port opens is not called unhealthy."""
    before = host.picture()
    commands = {
        "code": ("exit 3", ("app instance exited", 3)),
        "none": ("true", ("app instance exited", 0)),
        "unknown": ("no-such-program", ("app instance exited", 127)),
        "signal": ("kill -KILL $$", ("app instance exited", 255)),
    }
    apps = {name: host.make_app(name) for name in commands}

    for name, (command, _) in commands.items():
        await host.start(apps[name], start_command=command, limits=SMALL)
    exits = {name: told(await exit_of(host, app)) for name, app in apps.items()}

    assert exits == {name: expected for name, (_, expected) in commands.items()}
    for app in apps.values():
        assert "router.register" not in words_about(host, app)
    assert await host.left_since(before) == []


async def test_an_app_that_never_opens_its_port_is_ended_when_its_time_is_over(host: Host) -> None:
    """It does not run on after it has been told as failed; 0 is a time too (docs/protocol.md, "Start message")."""
    before = host.picture()
    apps = {timeout_s: host.make_app(f"mute-{timeout_s}") for timeout_s in (0, 1)}

    for timeout_s, app in apps.items():
        await host.start(app, start_command="exec sleep 1000", health_check_timeout=timeout_s, limits=SMALL)
    for app in apps.values():
        assert told(await exit_of(host, app)) == (NOT_HEALTHY, -1)

    assert await host.left_since(before) == []
    for app in apps.values():
        assert words_about(host, app).count("droplet.exited") == 1
        assert "router.register" not in words_about(host, app)


async def test_an_app_that_uses_up_its_memory_is_reported_as_out_of_memory(host: Host) -> None:
    """255 also when a shell stands between and says 137."""
    before = host.picture()
    plain, behind_a_shell = host.make_app("plain"), host.make_app("shell")
    for app, command in ((plain, "exec ./listener"), (behind_a_shell, "./listener; exit $?")):
        running = await host.run(app, start_command=command, limits=SMALL)
        await host.ask_app(running["stats"]["port"], "eat")

    assert told(await exit_of(host, plain)) == ("out of memory", 255)
    assert told(await exit_of(host, behind_a_shell)) == ("out of memory", 255)
    assert await host.left_since(before) == []


async def test_an_app_that_forks_until_it_is_stopped_is_stopped(host: Host) -> None:
    """The host and the app beside it do not suffer; none of its processes survives the stop."""
    before = host.picture()
    neighbour, bomb = host.make_app("neighbour"), host.make_app("bomb", uris=())
    running = await host.run(neighbour, limits=SMALL)
    # not in the shell's own language: a shell ends when it cannot fork
    forks = """exec perl -e '$SIG{TERM} = "IGNORE"; fork while 1'"""
    await host.run(bomb, start_command=forks, limits={**SMALL, "mem": 512})
    limit = host.settings["instance"].get("nproc_limit", 512)
    assert await poll(lambda: pids_inside(host) >= limit, 60), pids_inside(host)

    assert "PORT" in await host.environment_of(running["stats"]["port"])
    await host.stop(bomb)
    await host.wait_gone(bomb, within_s=60)

    assert "PORT" in await host.environment_of(running["stats"]["port"])
    await host.stop(neighbour)
    await host.wait_gone(neighbour)
    assert await host.left_since(before) == []


async def test_an_app_that_fills_its_disk_sees_the_end_of_it_alone(host: Host) -> None:
    """It is told ENOSPC and may live on; the app beside it writes on."""
    before = host.picture()
    write = 'dd if=/dev/zero of=/home/vcap/big bs=1M count={} 2>&1; echo "wrote: $?"; exec ./listener'
    greedy, modest = host.make_app("greedy"), host.make_app("modest")
    await host.run(greedy, start_command=write.format(100), limits=SMALL)
    await host.run(modest, start_command=write.format(10), limits=SMALL)

    said = await wait_output(host, greedy, "wrote:")
    assert "No space left on device" in said
    assert "wrote: 1" in said
    assert "wrote: 0" in await wait_output(host, modest, "wrote:")

    for app in (greedy, modest):
        await host.stop(app)
        await host.wait_gone(app)
    assert await host.left_since(before) == []


async def test_what_an_archive_may_not_bring_is_dropped_and_the_app_runs(host: Host) -> None:
    """Set-uid bits, overlay attributes and foreign owners are dropped; a virtual environment's absolute links stay."""

    def fill(archive: tarfile.TarFile) -> None:
        add_special(archive, "./app", tarfile.DIRTYPE, mode=0o7755)
        add_file(archive, "./app/listener", host.listener, 0o6755)
        overlay = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.redirect": "/etc"}
        add_file(
            archive, "./app/marked", b"mine", pax={**overlay, "SCHILY.xattr.security.capability": "\x01"}
        )
        add_special(archive, "./app/venv/bin/python3", tarfile.SYMTYPE, "/usr/bin/python3")
        look = (
            b"stat -c '%n %a %u' app/listener app/marked; readlink app/venv/bin/python3; cat app/marked; echo;"
            b"app/venv/bin/python3 -c 'import os; print(os.listxattr(\"app/marked\"))'; app/listener"
        )
        add_file(archive, "./staging_info.yml", b"start_command: cd .. && sh look\n")
        add_file(archive, "./look", look)

    before = host.picture()
    app = host.make_app("odd", droplet=tar_droplet(fill))

    await host.run(app, limits=SMALL)
    said = await wait_output(host, app, "listening")

    assert said.splitlines()[:5] == [
        "app/listener 755 2000",
        "app/marked 644 2000",
        "/usr/bin/python3",
        "mine",
        "[]",
    ]
    layer = host.base_dir / "layers" / app.droplet.sha1
    assert os.listxattr(layer / "app/marked") == []
    assert (layer / "app/listener").stat().st_mode & 0o7000 == 0
    await host.stop(app)
    await host.wait_gone(app)
    assert await host.left_since(before) == []


async def test_values_of_the_environment_are_data_whatever_they_hold(host: Host) -> None:
    """Without `=` the value is empty; without a name, or with a NUL, a word is left out; the shell sees none of them, and of
    names with a dollar only a few are expanded (docs/apps.md, "Variables").
    """
    app = host.make_app("words")
    odd = [
        "EMPTY",
        "=nameless",
        "A=b=c",
        "NUL=a\0b",
        "EXPAND=$(touch /tmp/x) `id` $HOME",
        "LINE=a",
        "EMOJI=é☃",
        "A=last",
    ]

    running = await host.run(app, env=odd, limits=SMALL)
    environment = await host.environment_of(running["stats"]["port"])

    home = "/home/vcap/app"
    wanted = {"EMPTY": "", "A": "last", "EXPAND": f"$(touch /tmp/x) `id` {home}", "LINE": "a", "EMOJI": "é☃"}
    assert {key: environment.get(key) for key in wanted} == wanted
    assert "NUL" not in environment
    assert "" not in environment


async def test_variables_that_double_each_other_fail_the_start(host: Host) -> None:
    """A few lines of `$A$A` would be terabytes: the start says so, and the agent goes on."""
    app = host.make_app("doubling")
    words = ["A0=xxxxxxxx", *(f"A{number + 1}=$A{number}$A{number}" for number in range(60))]
    await host.start(app, env=words, limits=SMALL)

    assert told(await exit_of(host, app)) == ("failed to start", -1)
    failed = await host.running.wait_log("instance_start_failed", app=app.id)
    assert " bytes after its variables are expanded" in failed["error"]


async def test_the_script_of_an_old_droplet_is_beside_the_app(host: Host) -> None:
    """Without a staging_info.yml, `./startup` is the command, in the droplet's own directory."""

    def fill(archive: tarfile.TarFile) -> None:
        add_file(archive, "./app/listener", host.listener, 0o755)
        add_file(archive, "./startup", b"#!/bin/sh\necho begun in $PWD\ncd app\nexec ./listener\n", 0o755)

    app = host.make_app("old", droplet=tar_droplet(fill))
    await host.run(app, limits=SMALL)
    assert "begun in /home/vcap\n" in await wait_output(host, app, "listening")


def with_state_file(host: Host, droplet_yaml: bytes, begin: bytes) -> Droplet:
    def fill(archive: tarfile.TarFile) -> None:
        add_file(archive, "./app/listener", host.listener, 0o755)
        add_file(archive, "./app/begin", begin, 0o755)
        add_file(archive, "./staging_info.yml", b"start_command: ./begin\n")
        add_file(archive, "./droplet.yaml", droplet_yaml)

    return tar_droplet(fill)


async def test_an_app_with_a_state_file_is_ready_when_the_file_reports_it(host: Host) -> None:
    """Not by its port, which it opens at once; until the file says RUNNING it is starting, with a route or without."""
    begin = b"#!/bin/sh\n./listener & while [ ! -e /home/vcap/app/go ]; do sleep 0.05; done\n"
    begin += b"""printf '{"state": "RUNNING"}' > ../state.json; wait\n"""
    app = host.make_app("stateful", droplet=with_state_file(host, b"state_file: state.json\n", begin))
    await host.start(app, limits=SMALL)
    await host.wait_state(app, "STARTING")
    await wait_output(host, app, "listening")
    assert {one["state"] for one in await host.find(app)} == {"STARTING"}

    handle = next(one["handle"] for one in await host.control("GET", "/v1/instances") if one["app"] == app.id)
    pid = host.pid_of_container(handle)
    (Path(f"/proc/{pid}/root/home/vcap/app/go")).touch()
    await host.wait_state(app, "RUNNING")


@pytest.mark.parametrize("text", [b"{{{", b"state_file:\n", b"state_file: [a]\n", b"other: 1\n", b"\xff\0"])
async def test_a_droplet_file_that_names_none_leaves_the_port(host: Host, text: bytes) -> None:
    """Broken or empty: the app is ready when its port accepts, as without one."""
    app = host.make_app("plain", droplet=with_state_file(host, text, b"#!/bin/sh\nexec ./listener\n"))
    await host.run(app, limits=SMALL)


async def test_routes_may_be_none_null_or_very_many(host: Host) -> None:
    """Without one an app is healthy at once; a list of thousands is registered as it came."""
    none, null, many = host.make_app("none", uris=()), host.make_app("null", uris=()), host.make_app("many")
    uris = [f"route-{number}.example.com" for number in range(5000)]

    await host.run(none, start_command="exec sleep 1000", limits=SMALL)
    await host.peer.burst([host.start_word(null, start_command="exec sleep 1000", limits=SMALL, uris=None)])
    await host.wait_state(null, "RUNNING")
    await host.run(many, limits=SMALL, uris=uris)

    registered = await host.peer.wait_for("router.register", lambda body: body["app"] == many.id)
    assert registered.body["uris"] == uris


async def test_a_download_that_stalls_is_given_up(hosts: OpenHost) -> None:
    """The time is configured (30 s by default); a start behind it is not held up."""
    async with hosts(downloads={"stall_s": 1}) as host:
        await host.start_agent()
        before = host.picture()
        stalled, good = host.make_app("stalled"), host.make_app("good")
        with host.files.stalled(stalled.path) as reached:
            await host.start(stalled, limits=SMALL)
            await reached.wait()
            await host.run(good, limits=SMALL)
            said = await exit_of(host, stalled)

        assert told(said) == ("failed to start", -1)
        failed = await host.running.wait_log("instance_start_failed", app=stalled.id)
        assert "no data for 1 s" in failed["error"]
        await host.stop(good)
        await host.wait_gone(good)
        assert await host.left_since(before) == []
        assert await half_made_layers(host) == []


async def test_an_id_that_is_in_use_is_not_given_twice(host: Host) -> None:
    """The older instance stays the one that is found and stopped by it."""
    app, other = host.make_app("shop"), host.make_app("other")
    before = host.picture()
    await host.run(app, limits=SMALL, instance_id="one-and-only")

    await host.start(other, limits=SMALL, instance_id="one-and-only")
    await host.running.wait_log("start_ignored_id_in_use", app=other.id)

    assert [one["instance"] for one in await host.find(app)] == ["one-and-only"]
    assert await host.find(other) == []
    await host.stop(app, instances=["one-and-only"])
    await host.wait_gone(app)
    assert await host.left_since(before) == []


async def test_name_and_output_of_an_app_are_only_data(host: Host) -> None:
    """No line of the log is forged by a name; output that is no text is told as bytes."""
    app = host.make_app('a\n{"event":"forged"}\r\x1b[2J', uris=())

    await host.run(app, limits=SMALL, start_command="printf 'x\\0\\377y\\n'; exec sleep 1000")

    async def said() -> list[dict[str, Any]]:
        return await host.control_lines(f"/v1/apps/{app.id}/logs")

    while not (lines := await said()):
        await asyncio.sleep(0.02)
    assert [base64.b64decode(line["data_base64"]) for line in lines] == [b"x\0\xffy\n"]
    assert host.running.log("forged") == []
    assert [one["name"] for one in await host.control("GET", "/v1/instances")] == [app.name]
