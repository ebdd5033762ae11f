"""A container made by the depot: its namespaces, mounts and limits as read from inside, and what root inside cannot change."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from depot_kit import BOTH_BUILDS, app, sh
from depot_kit import depot as depot
from depot_kit import stack as stack
from inside_attack import ATTACK

from container import Access, BindMount, Container, Depot, Limits, User

pytestmark = [pytest.mark.kernel, BOTH_BUILDS]

#: docs/wshd.md, "Isolation"; numbers of capabilities(7).
CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "SYS_CHROOT": 18,
    "SETFCAP": 31,
}
BOUNDING = sum(1 << number for number in CAPABILITIES.values())
MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
    *("/sys/firmware", "/sys/devices/virtual/powercap", "/sys/devices/virtual/block"),
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys")


@dataclass
class Scene:
    """A container with a droplet and two binds, and the host's places behind it."""

    container: Container
    base: Path
    stack: Path
    droplet: Path

    async def text(self, script: str, user: User = User.ROOT) -> str:
        result = await self.container.run(sh(script, user=user))
        assert result.status.code == 0, result
        return result.stdout.decode()

    async def status(self, user: User) -> dict[str, str]:
        lines = (await self.text("cat /proc/self/status", user)).splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest_asyncio.fixture
async def scene(depot: Depot, stack: Path, tmp_path: Path) -> AsyncIterator[Scene]:
    droplet, readable, writable = (tmp_path / name for name in ("droplet", "readable", "writable"))
    (droplet / "app").mkdir(parents=True)
    (droplet / "app/main").write_text("droplet\n")
    for path in (droplet, droplet / "app", droplet / "app/main"):
        os.chown(path, User.VCAP.value, User.VCAP.value)
    readable.mkdir()
    (readable / "file").write_text("host\n")
    writable.mkdir()
    writable.chmod(0o777)
    binds = (BindMount(readable, "/mnt/ro"), BindMount(writable, "/mnt/rw", Access.READ_WRITE))
    box = await depot.create(app(stack, home_layers=(droplet,), binds=binds, hostname="web-0"))
    yield Scene(box, tmp_path, stack, droplet)


async def test_ids_are_the_ranges(scene: Scene) -> None:
    """65,535 of the 65,536 ids are mapped, for users and for groups; the range is nobody else's."""
    other = (await scene.text("cat /proc/self/uid_map")).split()
    assert other == (await scene.text("cat /proc/self/gid_map")).split()
    assert other[0] == "0"
    assert int(other[1]) >= 1_000_000_000
    assert other[2] == "65535"


async def test_no_file_behind_a_loop_device_is_named(depot: Depot, stack: Path) -> None:
    """It is a path of the host that ends in a container's handle, for every container of the host."""
    box = await depot.create(app(stack, handle="secret-name", limits=Limits(disk_bytes=32 << 20)))
    behind = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert [text for text in behind if "secret-name" in text], "this container has a loop device"

    places = "/sys/block/* /sys/class/block/* /sys/dev/block/* /sys/devices/virtual/block/*"
    script = f"for place in {places}; do cat $place/loop/backing_file; done 2>/dev/null; ls /sys/devices/virtual/block"
    for user in User:
        result = await box.run(sh(script + " 2>/dev/null; true", user=user))
        assert (result.status.code, result.stdout) == (0, b"")


@pytest.mark.parametrize(("user", "effective"), [(User.ROOT, BOUNDING), (User.VCAP, 0)])
async def test_capabilities_are_exact(scene: Scene, user: User, effective: int) -> None:
    """root inside has the bounding set and never CAP_SYS_ADMIN, vcap has none; nothing can be gained, seccomp filters."""
    status = await scene.status(user)

    sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert sets == {"CapInh": 0, "CapPrm": effective, "CapEff": effective, "CapBnd": BOUNDING, "CapAmb": 0}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Seccomp_filters"]) == ("1", "2", "1")
    assert status["Uid"].split() == status["Gid"].split() == [str(user.value)] * 4
    assert status["Groups"] == ""


async def test_a_set_uid_program_gains_nothing(scene: Scene) -> None:
    """no_new_privs and nosuid: a copy of id with the bit set says vcap."""
    await scene.text("cp /bin/busybox /id2; chmod 4755 /id2; ln -s /id2 /usr/bin/id")
    assert (await scene.text("/usr/bin/id -u", User.VCAP)).strip() == "2000"


async def test_devices_are_exactly_these(scene: Scene) -> None:
    """The list of /dev, and which of them are device nodes; no other node can be made."""
    listing = await scene.text("cd /dev; for f in *; do stat -c '%n %F' $f; done")

    devices = ("full", "null", "random", "tty", "urandom", "zero")
    links = ("fd", "ptmx", "stderr", "stdin", "stdout")
    assert dict(line.split(" ", 1) for line in listing.splitlines()) == {
        **dict.fromkeys(devices, "character special file"),
        **dict.fromkeys(links, "symbolic link"),
        **dict.fromkeys(("mqueue", "pts", "shm"), "directory"),
    }
    made = await scene.container.run(sh("mknod /tmp/sda b 8 0 || mknod /dev/mem c 1 1", user=User.ROOT))
    assert made.status.code != 0


async def test_no_path_of_the_host_shows_but_a_binds_source(scene: Scene) -> None:
    """mountinfo, mounts, and pid 1's title and maps, whoever looks."""
    seen = await scene.text("cat /proc/self/mountinfo /proc/self/mounts /proc/self/mountstats")
    lines = [line for line in seen.splitlines() if str(scene.base) in line or "/depot/" in line]
    # the last three fields of a bind's line are of its source; its root field is the path there
    binds = {"/mnt/ro": "readable", "/mnt/rw": "writable"}
    assert {line.split()[4] for line in lines} == set(binds)
    for line in lines:
        assert line.split()[3].endswith(f"/{binds[line.split()[4]]}")
    assert str(scene.stack) not in seen
    for user in User:
        text = (
            await scene.container.run(sh("cat /proc/1/cmdline /proc/1/maps /proc/1/environ", user=user))
        ).stdout
        assert b"/depot/" not in text
        assert os.fsencode(scene.base) not in text


async def test_masked_is_empty_and_read_only_is_read_only(scene: Scene) -> None:
    """Masked: an empty directory or nothing to read; not to be told by root inside either."""
    script = "for p in {}; do [ ! -e $p ] || {{ [ -d $p ] && ls -A $p; [ -d $p ] || head -c 1 $p; }}; done"
    assert await scene.text(script.format(" ".join(MASKED)) + "; true") == ""
    options = {
        line.split()[4]: line.split()[5]
        for line in (await scene.text("cat /proc/self/mountinfo")).splitlines()
    }
    there = [path for path in READ_ONLY if Path(path).exists()]  # by this kernel
    assert {path: options[path].split(",")[0] for path in there} == dict.fromkeys(there, "ro")


async def test_the_names_and_links_of_a_host_of_its_own(scene: Scene) -> None:
    """Host name, /etc/hosts, only lo and eth0, and a table of processes that begins with pid 1."""
    assert await scene.text("hostname; cat /etc/hostname") == "web-0\nweb-0\n"
    links = (await scene.text("cat /proc/net/dev")).splitlines()[2:]
    assert sorted(line.split(":")[0].strip() for line in links) == ["eth0", "lo"]
    assert (await scene.text("ls /sys/class/net")).split() == ["eth0", "lo"]
    numbers = [int(word) for word in (await scene.text("ls /proc")).split() if word.isdigit()]
    assert min(numbers) == 1
    assert len(numbers) <= 4
    assert (await scene.text("cat /proc/1/comm")).strip() == "wshd"


async def test_root_inside_cannot_undo_a_mount(scene: Scene) -> None:
    """Neither remount nor unmount, nor a new mount on top: by no program, at no mount point."""
    before = await scene.text("cat /proc/self/mountinfo")
    for point in (*MASKED, *READ_ONLY, "/mnt/ro", "/", "/proc", "/dev", "/home/vcap"):
        script = (
            f"umount {point} || umount -l {point} || mount -o remount,rw {point} || mount -o remount,bind,rw {point}"
            f" || mount --move {point} /tmp || mount -t tmpfs none {point} || mount --bind /tmp {point}"
        )
        assert (await scene.container.run(sh(script, user=User.ROOT))).status.code != 0, point
    assert await scene.text("cat /proc/self/mountinfo") == before


@pytest.mark.parametrize("user", User)
async def test_calls_that_reach_out_are_refused(scene: Scene, user: User, tmp_path: Path) -> None:
    """ptrace, prlimit, signals, memory and descriptors of pid 1; namespaces in every way; handles, keys, modules."""
    source, program = tmp_path / "attack.c", tmp_path / "writable" / "attack"
    source.write_text(ATTACK)
    subprocess.run(["gcc", "-static", "-Wall", "-Werror", "-o", program, source], check=True)

    result = await scene.container.run(sh("/mnt/rw/attack", user=user))

    assert result.stdout == b""
    assert (result.status.code, result.stderr) == (0, b"")
    assert await scene.text("echo alive") == "alive\n"
    assert Path(f"/proc/{scene.container.pid}").exists()


async def test_nothing_of_pid_1_can_be_opened(scene: Scene) -> None:
    """Each file below /proc/1 that would show or change it."""
    names = "exe mem fd fdinfo root cwd environ maps smaps pagemap auxv stack syscall io map_files"
    script = f"for n in {names}; do f=/proc/1/$n; cat $f/* >/dev/null 2>&1 || cat $f >/dev/null 2>&1 || echo $n; done"
    assert (await scene.text(script)).split() == names.split()
    changes = "for n in oom_score_adj uid_map gid_map setgroups clear_refs coredump_filter mem; do"
    assert (await scene.text(f"{changes} (echo 0 > /proc/1/$n) 2>/dev/null && echo $n; done; true")) == ""


async def test_the_lower_layers_never_change(scene: Scene) -> None:
    """Inodes are the lowers', a write copies up, a delete hides, a directory is renamed; afterwards every byte, mode, owner
    and name of both layers is as before.
    """
    before = [fingerprint(scene.stack), fingerprint(scene.droplet)]
    lower, home = scene.stack / "etc/passwd", scene.droplet / "app/main"

    shown = await scene.text("stat -c %i /etc/passwd /home/vcap/app/main")
    await scene.text(
        "echo more >> /etc/passwd; rm /etc/group; chmod 700 /etc; chown 7:7 /root; mv /usr /usr2; touch /usr2/new;"
        "mv /home/vcap/app /home/vcap/app2; echo x >> /home/vcap/app2/main; rm /home/vcap/from-stack;"
        "mkdir /etc/dir; ln /bin/busybox /bin/linked; rm -r /var; chmod 4700 /bin/busybox"
    )
    seen = await scene.container.read_file("/home/vcap/app2/main", 100)

    assert shown.split() == [str(lower.stat().st_ino), str(home.stat().st_ino)]
    assert seen == b"droplet\nx\n"
    assert [fingerprint(scene.stack), fingerprint(scene.droplet)] == before


async def test_a_mapped_bind_belongs_to_those_inside(depot: Depot, stack: Path, tmp_path: Path) -> None:
    """vcap's plain number is vcap inside: what is its own alone can be read and run, and not written. Unmapped it is nobody's."""
    pack = tmp_path / "pack"
    pack.mkdir(mode=0o700)
    program = pack / "run"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o700)
    for path in (pack, program):
        os.chown(path, User.VCAP.value, User.VCAP.value)
    binds = (BindMount(pack, "/mnt/mapped", mapped=True), BindMount(pack, "/mnt/plain"))
    box = await depot.create(app(stack, binds=binds))

    script = "/mnt/mapped/run; stat -c '%u %g' /mnt/mapped/run; touch /mnt/mapped/x 2>&1; ls /mnt/plain 2>&1; stat -c %u /mnt/plain"
    told = (await box.run(sh(script))).stdout.decode().splitlines()

    assert told == [
        "ran",
        "2000 2000",
        "touch: /mnt/mapped/x: Read-only file system",
        "ls: can't open '/mnt/plain': Permission denied",
        "65534",
    ]


def fingerprint(root: Path) -> str:
    """Of all names, kinds, modes, owners, sizes, times, links and contents below ``root``."""
    hashed = hashlib.sha256()
    for path in sorted([root, *root.rglob("*")]):
        info = path.lstat()
        facts = (
            path,
            info.st_mode,
            info.st_uid,
            info.st_gid,
            info.st_size,
            info.st_mtime_ns,
            info.st_ctime_ns,
            info.st_nlink,
        )
        hashed.update(repr(facts).encode())
        if stat.S_ISREG(info.st_mode):
            hashed.update(path.read_bytes())
        elif stat.S_ISLNK(info.st_mode):
            hashed.update(os.fsencode(path.readlink()))
    return hashed.hexdigest()
