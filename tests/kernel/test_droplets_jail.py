"""The jail of the unpacking worker, checked from inside and from the host."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_kit import END, file, packed, tree_of

from agent.droplets import jail, unpacker
from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.unpacker import JailError, Unpacker

pytestmark = pytest.mark.kernel

PROBE = Path(__file__).with_name("droplets_probe.py")
WAIT_S = 30.0
BOUNDS = Bounds(total_bytes=64 << 20)

#: What a jailed process gets for each attempt of droplets_probe.py.
REFUSED = {
    "EPERM": (
        "whiteout", "FIFO", "user attribute", "trusted attribute", "owner", "mode by name", "set-uid by fchmod",
        "sticky by fchmod", "set-gid by open", "sticky by mkdir", "inode flags", "rename", "truncate by name", "fork",
        "clone3", "exec", "socket", "ptrace", "signal to the parent", "mount", "unshare", "chroot", "setuid", "openat2",
        "io_uring", "keyctl", "prctl", "limits",
    ),
    "ENOENT": ("host's file", "proc"),
    "ELOOP": ("through a link",),
    "ENOMEM": ("2 GiB of memory",),
}  # fmt: skip
ALLOWED = ("file with a mode", "directory with a mode", "fchmod", "hard link", "times", "unlink")


@pytest.fixture
def target(base_dir: Path) -> Path:
    Unpacker(low_water_bytes=0).make_root(base_dir / "target")
    return base_dir / "target"


@pytest.fixture
def probe(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is shut in and waits."""
    process = subprocess.Popen(
        [sys.executable, "-I", str(PROBE), str(target), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        extra_groups=[4242],  # an agent's own, which must not come along
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    yield process
    process.kill()
    process.communicate()


def zip_of(entries: dict[str, bytes]) -> bytes:
    """Without the flag that says that names are UTF-8."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue().replace(b"\x00\x08\x00\x00", bytes(4))


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: " ".join(value.split()) for key, _, value in (line.partition(":") for line in lines)}


def test_a_jailed_process_is_nobody(probe: subprocess.Popen[bytes]) -> None:
    """An id that exists nowhere else, no group, no capability of any kind, and a filter."""
    status = status_of(probe.pid)

    ids = " ".join([str(jail.WORKER_ID)] * 4)
    assert (status["Uid"], status["Gid"], status["Groups"]) == (ids, ids, "")
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")


def test_a_jailed_process_shares_no_namespace_that_matters(probe: subprocess.Popen[bytes]) -> None:
    """A network with nothing in it but a loopback that is down, and one id in its user namespace."""
    for name in ("user", "net", "ipc", "uts", "mnt"):
        assert os.readlink(f"/proc/{probe.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    links = Path(f"/proc/{probe.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in links] == ["lo"]
    assert Path(f"/proc/{probe.pid}/uid_map").read_text().split() == [str(jail.WORKER_ID)] * 2 + ["1"]
    assert Path(f"/proc/{probe.pid}/gid_map").read_text().split() == [str(jail.WORKER_ID)] * 2 + ["1"]


def test_a_jailed_process_holds_no_descriptor_but_its_own(
    probe: subprocess.Popen[bytes], target: Path
) -> None:
    """Standard input, output and error, and the root of the tree: a mount that follows nothing and runs nothing."""
    held = {
        number: os.readlink(f"/proc/{probe.pid}/fd/{number}")
        for number in os.listdir(f"/proc/{probe.pid}/fd")
    }
    (root,) = set(held) - {"0", "1", "2"}

    info = Path(f"/proc/{probe.pid}/fdinfo/{root}").read_text()
    assert held[root] == "/"
    assert Path(f"/proc/{probe.pid}/root").stat().st_ino == target.stat().st_ino
    assert "mnt_id:" in info


def test_what_a_jailed_process_gets(probe: subprocess.Popen[bytes], target: Path) -> None:
    """Every trick is refused, all the work can be done, and what it made is vcap's on the disk."""
    expected = {name: how for how, names in REFUSED.items() for name in names}
    expected |= dict.fromkeys(ALLOWED, "done")
    expected |= {"above the root": "['directory', 'file', 'link']", "room on the disk": "True"}

    said, _ = probe.communicate(b"\n", timeout=WAIT_S)

    assert json.loads(said) == expected
    assert tree_of(target) == {
        "directory": "directory 755",
        "d700": "directory 700",
        "hard": "file 600 ",
        "link": "link /file",
        "plain": "file 700 ",
    }
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in (target, *target.rglob("*"))}
    assert owners == {(jail.VCAP, jail.VCAP)}


def test_a_worker_dies_with_its_agent(target: Path) -> None:
    """Also one that does not wait for input: it must not go on writing into a tree that the next agent throws away."""
    script = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); sys.stdin.read()"
    agent = subprocess.Popen(
        [sys.executable, "-c", script, sys.executable, "-I", str(PROBE), str(target), "0"],
        stdin=subprocess.PIPE,  # held by the test, so that the worker sees no end of it
        stdout=subprocess.PIPE,
    )
    assert agent.stdout is not None
    lines = {agent.stdout.readline(), agent.stdout.readline()}
    (worker,) = lines - {b"in\n"}

    agent.kill()
    agent.wait()

    _, status = os.waitpid(int(worker), 0)  # an orphan of ours: the test host is a subreaper
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    agent.communicate()


async def test_the_root_is_vcaps_whatever_the_archive_says(base_dir: Path) -> None:
    """Neither its mode nor its owner; everything below belongs to vcap's plain number."""
    root = base_dir / "tree"
    data = file(b"./", kind=b"5", mode=0o4000, uid=12345) + file(b"d/a", b"aaa", uid=12345) + END

    async with Unpacker(low_water_bytes=0).feeding_tar(root, BOUNDS) as feeding:
        await feeding.feed(data)
        done = await feeding.finish()

    assert (done.files, done.bytes) == (2, 3)
    assert root.stat().st_mode & 0o7777 == 0o755
    assert {(p.stat().st_uid, p.stat().st_gid) for p in (root, *root.rglob("*"))} == {(2000, 2000)}


async def test_a_worker_that_is_cancelled_is_gone(base_dir: Path) -> None:
    """The end of the block is the end of the process, come what may."""
    begun = asyncio.Event()
    pids = []

    async def feed() -> None:
        async with Unpacker(low_water_bytes=0).feeding_tar(base_dir / "tree", BOUNDS) as feeding:
            pids.append(feeding._process.pid)
            await feeding.feed(file(b"a", b"aaa"))
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(feed(), name="feed")
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not Path(f"/proc/{pids[0]}").exists()


async def test_a_worker_that_cannot_be_shut_in_is_the_hosts_fault(base_dir: Path) -> None:
    """Not the archive's: the caller may try again elsewhere."""
    unpacker = Unpacker(low_water_bytes=0)

    async with unpacker.feeding_tar(base_dir / "tree", BOUNDS) as feeding:
        (base_dir / "tree").rmdir()  # long before Python is up in the worker
        with pytest.raises(JailError, match="the jail of the unpacking worker cannot be set up"):
            await feeding.finish()


async def test_the_low_water_mark_ends_an_unpacking(base_dir: Path) -> None:
    """The disk belongs to all: what is left of it is looked at while it is being filled."""
    async with Unpacker(low_water_bytes=1 << 60).feeding_tar(base_dir / "tree", BOUNDS) as feeding:
        await feeding.feed(file(b"a", b"aaa") + END)
        with pytest.raises(ArchiveError, match="low-water mark"):
            await feeding.finish()


COSTLY = packed(b"".join(file(b"%d" % number) for number in range(40_000)) + END)
CHEAP = Bounds(total_bytes=1 << 20, cpu_base_s=0.3, cpu_s_per_mib=0.0)


async def test_an_archive_that_costs_more_than_its_bytes_are_worth_is_refused(base_dir: Path) -> None:
    """Headers of empty files pack 200 to 1, and each costs the host an inode and the work of making it."""
    async with Unpacker(low_water_bytes=0).feeding_tar(base_dir / "tree", CHEAP) as feeding:
        await feeding.feed(COSTLY)
        with pytest.raises(ArchiveError, match=r"^\d+ bytes took more than 0.3 s of processor time"):
            await feeding.finish()


async def test_a_zip_that_costs_more_than_its_bytes_are_worth_is_refused(base_dir: Path) -> None:
    """The bytes of a file are all there from the start."""
    archive = base_dir / "app.zip"
    archive.write_bytes(zip_of({str(number): b"" for number in range(20_000)}))
    with pytest.raises(ArchiveError, match=rf"^{archive.stat().st_size} bytes took more than 0.3 s"):
        await Unpacker(low_water_bytes=0).unpack_zip(archive, base_dir / "tree", CHEAP)


def test_the_bound_on_the_cost_grows_with_the_archive() -> None:
    """Half a megabyte may cost six seconds; a real droplet of 60 MB needs one and may cost two minutes."""
    assert Bounds(1).cpu_s(512 << 10) == 6.0
    assert Bounds(1).cpu_s(60 << 20) == 125.0


async def test_a_worker_that_does_nothing_is_given_up(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not answer costs this archive, not the app that waits for its turn."""
    monkeypatch.setattr(unpacker, "PATIENCE_S", 0.5)
    async with Unpacker(low_water_bytes=0).feeding_tar(base_dir / "tree", BOUNDS) as feeding:
        os.kill(feeding._process.pid, signal.SIGSTOP)
        with pytest.raises(JailError, match="has not responded"):
            await feeding.feed(bytes(8 << 20))


async def test_a_zip_is_unpacked_in_the_same_jail(base_dir: Path) -> None:
    """From a file that only the agent may read; names of old code pages need a codec that is out of reach by then."""
    archive = base_dir / "app.zip"
    archive.write_bytes(zip_of({"d/a": b"aaa", "é": b"x"}).replace("é".encode(), b"\xe9\xe9"))
    archive.chmod(0o600)

    done = await Unpacker(low_water_bytes=0).unpack_zip(archive, base_dir / "tree", BOUNDS)

    assert (done.files, done.bytes) == (3, 4)
    assert {path.stat().st_uid for path in (base_dir / "tree").rglob("*")} == {2000}
