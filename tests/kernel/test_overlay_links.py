"""The names of a hard link in a layer stay one file inside, after writes, renames and removals; the layer is not changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from depot_kit import app, sh
from depot_kit import depot as depot
from depot_kit import stack as stack

from container import Depot, User

pytestmark = pytest.mark.kernel


@pytest.fixture
def droplet(base_dir: Path) -> Path:
    """A layer for /home/vcap with one file under three names, in two directories."""
    home = base_dir / "droplet"
    for name in ("app", "app/lib"):
        (home / name).mkdir(parents=True)
    (home / "app/one").write_text("first\n")
    os.link(home / "app/one", home / "app/two")
    os.link(home / "app/one", home / "app/lib/three")
    for path in (home, *home.rglob("*")):
        os.chown(path, 2000, 2000)
    return home


async def test_a_write_by_one_name_is_read_by_the_others(depot: Depot, stack: Path, droplet: Path) -> None:
    """As on the host that packed it: git's objects and pnpm's store are made of such files."""
    box = await depot.create(app(stack, home_layers=(droplet,)))
    script = """
    cd /home/vcap/app
    stat -c %h one two lib/three
    echo second >> two
    cat one lib/three
    stat -c %i one two lib/three | sort -u | wc -l
    stat -c %h one
    rm two
    stat -c %h one
    mv lib/three four && echo third >> four
    tail -n 1 one
    """
    result = await box.run(sh(script))
    assert result.stdout.decode().split() == [
        *("3", "3", "3"),
        *("first", "second", "first", "second"),
        *("1", "3", "2", "third"),
    ], result.stderr

    assert (droplet / "app/one").read_text() == "first\n"
    assert (droplet / "app/two").stat().st_nlink == 3


async def test_two_containers_do_not_share_what_they_write(depot: Depot, stack: Path, droplet: Path) -> None:
    """The index is each container's own."""
    first = await depot.create(app(stack, home_layers=(droplet,)))
    second = await depot.create(app(stack, home_layers=(droplet,)))
    await first.run(sh("echo changed > /home/vcap/app/one"))

    read = [(await box.run(sh("cat /home/vcap/app/lib/three"))).stdout for box in (first, second)]
    assert read == [b"changed\n", b"first\n"]


async def test_links_of_the_stack_stay_links_too(depot: Depot, stack: Path, base_dir: Path) -> None:
    """The root overlay has the same options; root inside writes there."""
    own = base_dir / "stack"
    shutil.copytree(stack, own, symlinks=True)
    (own / "etc/a").write_text("a\n")
    os.link(own / "etc/a", own / "etc/b")
    box = await depot.create(app(own))
    script = "echo more >> /etc/a && cat /etc/b && stat -c %h /etc/b"
    result = await box.run(sh(script, user=User.ROOT))
    assert result.stdout.split() == [b"a", b"more", b"2"], result.stderr
