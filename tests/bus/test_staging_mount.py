"""What a buildpack can rely on: one mount for app, cache and TMPDIR, which are not in the droplet, and the arguments of the API."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest
from conftest import OpenHost
from driver import Host
from driver_apps import tar_of
from staging_kit import Desk, buildpack
from test_staging_replies import live_output

pytestmark = pytest.mark.bus

#: Renames and hard links, of files and directories, each way; perl's rename is rename(2), mv would copy.
MOVES = r"""set -eu
rename_() { perl -e 'rename($ARGV[0], $ARGV[1]) or die "$ARGV[0] -> $ARGV[1]: $!\n"' "$1" "$2"; }
test "$TMPDIR" = "$(dirname "$(mktemp -u)")"
mkdir -p "$2/dir" "$TMPDIR/work"
echo cached > "$2/dir/file"; echo made > "$TMPDIR/work/file"
cat "$2/from-before"
rename_ "$2/from-before" "$1/renamed-from-cache"
cp -al "$2/dir" "$1/linked-from-cache"
ln "$TMPDIR/work/file" "$1/linked-from-tmp"
rename_ "$TMPDIR/work" "$1/renamed-from-tmp"
rename_ "$1/shipped" "$2/renamed-from-app"
rename_ "$1/lib" "$TMPDIR/lib" && rename_ "$TMPDIR/lib" "$1/lib"
stat -c '%m' "$1" "$2" "$TMPDIR" | sort -u
"""


@pytest.fixture
def desk(host: Host) -> Desk:
    return Desk(host)


async def test_app_cache_and_tmpdir_are_one_mount(desk: Desk, host: Host) -> None:
    """rename and link go between them, of files of the package and of the stored cache too; none is in the droplet."""
    app = desk.app({"shipped": (b"shipped", 0o644), "lib/a": (b"a", 0o644)})
    host.files.put(f"/caches/{app.id}", gzip.compress(tar_of({"from-before": (b"before\n", 0o644)})))
    staging = await desk.stage(desk.pack("moves", buildpack(compile=MOVES)), app=app)
    assert (await staging.reply(2))["droplet_sha1"] is not None, await live_output(host, staging.task_id)

    said = await live_output(host, staging.task_id)
    assert b"before" in said
    assert [line for line in said.split(b"\n") if line.startswith(b"/")] == [b"/"], said
    with tarfile.open(fileobj=io.BytesIO(host.files.uploads[f"{app.path}/upload"])) as droplet:
        names = set(droplet.getnames())
    assert {"/".join(name.split("/")[:2]) for name in names} <= {
        "./app",
        "./logs",
        "./tmp",
        "./staging_info.yml",
    }
    assert {name for name in names if name.startswith("./tmp/")} == set()
    assert {
        "./app/renamed-from-cache",
        "./app/linked-from-cache/file",
        "./app/linked-from-tmp",
        "./app/renamed-from-tmp/file",
        "./app/lib/a",
    } <= names
    with tarfile.open(fileobj=io.BytesIO(host.files.uploads[f"/caches/{app.id}/upload"])) as cache:
        assert sorted(cache.getnames()) == [".", "./dir", "./dir/file", "./renamed-from-app"]


async def test_the_user_chooses_another_tmpdir(desk: Desk, host: Host) -> None:
    """A variable of the app's goes before ours, as everywhere."""
    shows = desk.pack("shows", buildpack(compile='echo "tmpdir is $TMPDIR"'))
    staging = await desk.stage(shows, properties={"environment": ["TMPDIR=/home/vcap/mine"]})
    await staging.reply(2)
    assert b"tmpdir is /home/vcap/mine" in await live_output(host, staging.task_id)


async def test_a_cache_of_more_than_the_disk_is_not_stored(hosts: OpenHost) -> None:
    """A sparse file is terabytes to tar: not a byte of it past the bound reaches the host's disk."""
    async with hosts(staging={"disk_limit_mb": 64}) as host:
        await host.start_agent()
        desk = Desk(host)
        app = desk.app()
        grows = desk.pack("grows", buildpack(compile='truncate -s 1T "$2/sparse"'))
        staging = await desk.stage(grows, app=app, disk_limit=64)
        assert (await staging.reply(2))["droplet_sha1"] is not None
        (line,) = host.running.log("buildpack_cache_not_stored")
        assert "more than 67108864 bytes" in line["error"]
        assert f"/caches/{app.id}/upload" not in host.files.uploads
        await staging.over()


async def test_the_env_dir_of_the_buildpack_api(desk: Desk, host: Host) -> None:
    """A file for each variable of the app's, with its value as it is; a name that can be no file's is passed over."""
    shows = buildpack(
        compile='cd "$3"; for f in *; do printf "%s=<%s>;" "$f" "$(cat "$f")"; done; stat -c %a A'
    )
    staging = await desk.stage(
        desk.pack("shows", shows),
        properties={"environment": ["A=1", "B=two $HOME `id`", "A=last", "../up=x", "E="], "services": []},
    )
    await staging.reply(2)
    assert b"A=<last>;B=<two $HOME `id`>;E=<>;600" in await live_output(host, staging.task_id)


async def test_a_buildpack_needs_no_release(desk: Desk, host: Host) -> None:
    """The Procfile is enough: its last `web` runs, without comment and carriage return, and is what everybody is told."""
    app = desk.app({"Procfile": (b"web: ./first\r\nworker: true\r\nweb: ./last --x # why\r\n", 0o644)})
    staging = await desk.stage(desk.pack("bare", buildpack(detect="echo; echo Bare", release=None)), app=app)
    second = await staging.reply(2)
    assert (second["detected_buildpack"], second["detected_start_command"]) == ("Bare", "./last --x")
    assert second["procfile"] == {"web": "./last --x", "worker": "true"}
    assert b"-----> Start command: ./last --x (Procfile)\n" in await live_output(host, staging.task_id)


@pytest.mark.parametrize("place", ["/proc/kmsg", "/proc/1/environ", "/dev/zero", "/dev/shm/file"])
async def test_a_procfile_that_is_a_link_to_elsewhere_is_none(desk: Desk, place: str) -> None:
    """The manager reads of the container's own disk only: not with the host's rights, and not for ever."""
    links = f'echo "web: ./foreign" > /dev/shm/file; ln -sf {place} "$1/Procfile"'
    second = await (await desk.stage(desk.pack("links", buildpack(compile=links)))).reply(2)
    assert second["detected_start_command"] == "./listener"
