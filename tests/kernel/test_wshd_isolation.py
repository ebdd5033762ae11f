"""A container launched by hand: its parts as read from inside, and what root inside cannot reach."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, ID_BASE, Box, bounding_mask, make_upper, program, running

pytestmark = pytest.mark.kernel

ALLOW_ALL = "06000000 0000ff7f".replace(" ", "")  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
# ld [nr]; jeq #mkdir(83), +0, +1; ret ERRNO|EPERM; ret ALLOW (x86_64)
REFUSE_MKDIR = "2000000000000000" + "1500000153000000" + "0600000001000500" + "060000000000ff7f"


@pytest.fixture(params=BUILDS)
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    (tmp_path / "ro").mkdir()
    (tmp_path / "ro/file").write_text("read only\n")
    (tmp_path / "rw").mkdir(mode=0o777)
    (tmp_path / "rw").chmod(0o777)
    home_layer = tmp_path / "droplet"
    (home_layer / "app").mkdir(parents=True)
    (home_layer / "app/run").write_text("droplet\n")
    make_upper(tmp_path / "home-disk", owner=2000)
    yield from running(
        tmp_path,
        request.param,
        *(
            "home",
            "/home/vcap",
            "home-layer",
            str(home_layer),
            "home-layer",
            str(tmp_path / "stack/home/vcap"),
        ),
        *("home-upper", str(tmp_path / "home-disk"), "seccomp", ALLOW_ALL, "shm", 1 << 20),
        *("bind", str(tmp_path / "ro"), "/mnt/ro", "ro", "bind", str(tmp_path / "rw"), "/mnt/rw", "rw"),
        *("bind", str(tmp_path / "ro/file"), "/mnt/one-file", "ro"),
        *("file", "/etc/hosts", "644", "127.0.0.1 localhost\n", "file", "/etc/new/secret", "600", "s"),
    )


def status_of(text: str) -> dict[str, str]:
    return {line.split(":")[0]: line.split(":", 1)[1].strip() for line in text.splitlines() if ":" in line}


def test_identity_of_a_job(box: Box) -> None:
    """65,535 ids are mapped, the bounding set is the plan's, seccomp filters, nothing can be gained."""
    assert (
        box.shell("map", "cat /proc/self/uid_map /proc/self/gid_map").split()
        == ["0", str(ID_BASE), "65535"] * 2
    )
    root = status_of(box.shell("root", "cat /proc/self/status"))
    assert int(root["CapBnd"], 16) == int(root["CapEff"], 16) == int(root["CapPrm"], 16) == bounding_mask()
    assert int(root["CapInh"], 16) == int(root["CapAmb"], 16) == 0
    assert (root["Seccomp"], root["NoNewPrivs"]) == ("2", "1")
    vcap = status_of(box.shell("vcap", "cat /proc/self/status", keys=("uid", 2000, "gid", 2000)))
    assert int(vcap["CapEff"], 16) == int(vcap["CapPrm"], 16) == 0
    assert int(vcap["CapBnd"], 16) == bounding_mask()
    assert vcap["Uid"].split() == ["2000"] * 4
    assert box.shell("name", "hostname") == "boxhost\n"


def test_pid_1_from_the_host(box: Box) -> None:
    """Pid 1 is the id that is not mapped inside, and shows no path of the host."""
    status = status_of(Path(f"/proc/{box.pid}/status").read_text())
    assert status["Uid"].split()[0] == str(ID_BASE + 65_535)
    assert status["Groups"] == ""
    assert Path(f"/proc/{box.pid}/oom_score_adj").read_text() == "0\n"
    assert str(box.folder).encode() not in Path(f"/proc/{box.pid}/cmdline").read_bytes()
    opened = {os.readlink(fd) for fd in Path(f"/proc/{box.pid}/fd").iterdir()}
    assert not [name for name in opened if name.startswith(str(box.folder))]


def test_every_namespace_is_its_own(box: Box) -> None:
    """None of the seven namespaces is the host's."""
    for kind in ("user", "pid", "net", "ipc", "uts", "mnt", "cgroup"):
        assert os.readlink(f"/proc/{box.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind


def mounts(box: Box) -> dict[str, tuple[set[str], str]]:
    """Mount point -> its options and its type; the topmost where they are stacked."""
    found = {}
    for line in box.shell("mounts", "cat /proc/self/mountinfo").splitlines():
        fields = line.split()
        found[fields[4]] = (set(fields[5].split(",")), fields[fields.index("-") + 1])
    return found


def test_mounts(box: Box) -> None:
    """Each mount has the type and the options that it must have, and no path of the host is named."""
    table = mounts(box)
    assert str(box.folder) not in box.shell("options", "cat /proc/mounts")
    expected = {
        "/": ("overlay", {"nosuid", "nodev", "rw"}),
        "/home/vcap": ("overlay", {"nosuid", "nodev", "rw"}),
        "/proc": ("proc", {"nosuid", "nodev", "noexec"}),
        "/sys": ("sysfs", {"ro", "nosuid", "nodev", "noexec"}),
        "/dev": ("tmpfs", {"nosuid"}),
        "/dev/pts": ("devpts", {"nosuid", "noexec"}),
        "/dev/shm": ("tmpfs", {"nosuid", "nodev", "noexec"}),
        "/dev/mqueue": ("mqueue", {"nosuid", "nodev", "noexec"}),
        "/proc/sys": ("proc", {"ro"}),
    }
    for point, (kind, options) in expected.items():
        assert table[point][1] == kind, point
        assert options <= table[point][0], point
    assert "noexec" not in table["/dev"][0], "/dev/zero is mapped executable by programs that make code"
    assert {"ro", "nosuid", "nodev"} <= table["/mnt/ro"][0]
    assert {"rw", "nosuid", "nodev"} <= table["/mnt/rw"][0]
    assert "ro" in table["/mnt/one-file"][0]


@pytest.mark.parametrize(
    "script",
    [
        "mount -o remount,rw /sys",
        "mount -o remount,rw /mnt/ro",
        "mount -t tmpfs none /mnt",
        "mount -t proc none /mnt",
        "umount /proc/sys",
        "umount /sys/firmware",
        "umount /mnt/ro",
        "umount -l /",
        "echo 1 > /mnt/ro/file",
        "echo boo > /proc/sys/kernel/hostname",
        "echo b > /proc/sysrq-trigger",
        "hostname other",
        "cat /proc/1/environ /proc/1/maps",
        "ls /proc/1/fd /proc/1/root /proc/1/cwd",
        "cat /proc/1/exe",
        "echo 1000 > /proc/1/oom_score_adj",
        "cat /dev/mem",
        "dd if=/proc/kcore of=/dev/null bs=1 count=1 2>&1 | grep -q '^1+0'",
        "ip link set lo down",
        "chown 65535 /etc/lower",
    ],
)
def test_root_inside_cannot(box: Box, script: str) -> None:
    """Root inside is refused, and pid 1 serves on."""
    ended, out, err = box.run("job", "/bin/sh", "-c", script)
    assert ended[:2] == ["ok", "exit"], (ended, out, err)
    assert ended[2] != "0", (out, err)


def test_masked_paths_are_empty(box: Box) -> None:
    """What is masked reads as nothing: an empty directory or /dev/null."""
    masked = "interrupts kcore keys latency_stats sched_debug timer_list timer_stats"
    script = f"cd /proc; for f in {masked}; do [ ! -e $f ] || cat $f; done; ls /sys/firmware"
    text = box.shell("job", script + "; ls acpi asound scsi /sys/devices/virtual/powercap 2>/dev/null; :")
    assert [line for line in text.splitlines() if line and not line.endswith(":")] == []


def test_nothing_inside_reaches_pid_1(box: Box) -> None:
    """Signals 1 to 64, ptrace, prlimit, process_vm_readv, setpriority and pidfd_getfd do nothing to pid 1."""
    source = box.folder / "attack.c"
    source.write_text(ATTACK)
    target = box.stack / "attack"
    subprocess.run(["gcc", "-static", "-o", target, source], check=True)
    os.link(target, box.folder / "rw" / "attack")
    ended, out, err = box.run("job", "/mnt/rw/attack")
    assert (ended, out) == (["ok", "exit", "0"], ""), (out, err)
    assert box.alive()


ATTACK = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sched.h>
#include <unistd.h>
#define REFUSED(call) do { if ((call) >= 0) { printf("%s\n", #call); bad = 1; } } while (0)
int main(void) {
    int bad = 0;
    struct rlimit limit = {3, 3};
    char bytes[8];
    struct iovec here = {bytes, 8}, there = {(void *)0x400000, 8};
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    for (int number = 1; number <= 64; number++) (void)kill(1, number);
    siginfo_t info = {.si_code = SI_QUEUE};
    for (int number = 1; number <= 64; number++) (void)syscall(SYS_rt_sigqueueinfo, 1, number, &info);
    for (int kind = 0; kind < 16; kind++) REFUSED(prlimit(1, kind, &limit, NULL));
    for (int kind = 0; kind < 16; kind++) REFUSED(prlimit(1, kind, NULL, &limit));
    REFUSED(ptrace(PTRACE_ATTACH, 1, 0, 0));
    REFUSED(ptrace(PTRACE_SEIZE, 1, 0, 0));
    REFUSED(process_vm_readv(1, &here, 1, &there, 1, 0));
    REFUSED(process_vm_writev(1, &here, 1, &there, 1, 0));
    REFUSED(setpriority(PRIO_PROCESS, 1, 19));
    REFUSED(sched_setaffinity(1, sizeof set, &set));
    int pidfd = (int)syscall(SYS_pidfd_open, 1, 0);
    for (int fd = 0; fd < 20; fd++) REFUSED(syscall(SYS_pidfd_getfd, pidfd, fd, 0));
    REFUSED(setresuid(65535, 65535, 65535));
    REFUSED(unshare(CLONE_NEWNS));
    REFUSED(mknod("/mnt/rw/sda", 0060666, 0x800));
    return bad;
}
"""


def test_device_nodes(box: Box) -> None:
    """The six nodes work and are root's, the links lead where they should, and shm has its size."""
    listing = box.shell("job", "cd /dev; stat -c '%n %u %a %F' null zero full random urandom tty")
    assert listing.splitlines() == [
        f"{name} 0 666 character special file"
        for name in ("null", "zero", "full", "random", "urandom", "tty")
    ]
    box.shell(
        "use", "head -c 4 /dev/urandom >/dev/null && ! echo x >/dev/full", keys=("uid", 2000, "gid", 2000)
    )
    links = box.shell("links", "cd /dev; for l in fd stdin stdout stderr ptmx; do readlink $l; done").split()
    assert links == ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"]
    assert box.run("shm", "/bin/dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1048577", "count=1")[0] == [
        "ok",
        "exit",
        "1",
    ]
    assert box.shell("mode", "stat -c %a /dev/shm").strip() == "1777"


def test_zero_may_be_mapped_executable(box: Box) -> None:
    """As on any host; what lies in /dev/shm may not."""
    source = box.folder / "map.c"
    source.write_text(MAP)
    subprocess.run(["gcc", "-static", "-o", box.folder / "rw/map", source], check=True)
    ended, out, err = box.run("job", "/mnt/rw/map", keys=("uid", 2000, "gid", 2000))
    assert (ended, out) == (["ok", "exit", "0"], "zero mapped, shm refused\n"), err


MAP = r"""
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
    int zero = open("/dev/zero", O_RDWR), shm = open("/dev/shm/file", O_RDWR | O_CREAT, 0700);
    if (ftruncate(shm, 4096)) return 1;
    int kind = PROT_READ | PROT_EXEC;
    printf("zero %s, ", mmap(0, 4096, kind, MAP_PRIVATE, zero, 0) == MAP_FAILED ? "refused" : "mapped");
    printf("shm %s\n", mmap(0, 4096, kind, MAP_PRIVATE, shm, 0) == MAP_FAILED ? "refused" : "mapped");
    return 0;
}
"""


def test_one_container_has_sixty_four_terminals(box: Box) -> None:
    """The kernel's count is one for the whole host: a container ends before it."""
    source = box.folder / "terminals.c"
    source.write_text(
        "#include <fcntl.h>\n#include <stdio.h>\n#include <errno.h>\n"
        'int main(void) { int n = 0; while (open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0) n++;'
        ' printf("%d %s\\n", n, errno == ENOSPC ? "full" : "?"); return 0; }\n'
    )
    subprocess.run(["gcc", "-static", "-o", box.folder / "rw/terminals", source], check=True)
    assert box.run("job", "/mnt/rw/terminals", keys=("uid", 2000, "gid", 2000))[1] == "64 full\n"


def test_the_program_of_pid_1_can_be_read_and_no_more(tmp_path: Path) -> None:
    """A job that runs /proc/self/exe before its exec runs the host's wshd, and root inside holds it open: its bytes are what it
    gets, also once nobody runs it. (The build with the sanitizers is dynamic, and has no libraries inside.)
    """
    box = Box.prepare(tmp_path, "static")
    before = hashlib.sha256(program(box.build).read_bytes()).hexdigest()
    try:
        box.launch()
        read_end, write_end = os.pipe()
        with box.spool("wshd").opened() as fds, box.client() as client:
            words = ("spawn", "wshd", "arg", "/proc/self/exe", "arg", "--plan", "arg", "0")
            names = ("fd", "stdin", "fd", "stdout", "fd", "stderr", "fd", "record")
            reply = client.ask(*words, *names, fds=[read_end, *fds])
        os.close(read_end)
        assert reply.ok, reply.words
        out = box.shell("attack", OVERWRITE)
        os.close(write_end)
    finally:
        box.kill()
    assert out == "ELF\ntried\ntried\n"
    assert hashlib.sha256(program(box.build).read_bytes()).hexdigest() == before


OVERWRITE = """
set -- $(ps -o pid,args | grep '[p]roc/self/exe')
exec 3</proc/$1/exe || exit 9
head -c 4 /proc/$1/exe | tail -c 3
echo
try() {
    for file in /proc/self/fd/3 "$@"; do
        (echo x >>$file) 2>/dev/null && echo written
        chmod 777 $file && echo mode
        chown 0 $file && echo owner
        touch $file && echo touched
        ln $file /tmp/link && echo linked
    done
    echo tried
}
try /proc/$1/exe
kill -9 $1
while [ -e /proc/$1/exe ]; do sleep 0.01; done
try
"""


def test_overlay_behaves_as_one_file_system(box: Box) -> None:
    """Inodes are the lower's, writes copy up, deletes hide, directories rename, the layer stays as it was."""
    before = sorted(str(path) for path in box.stack.rglob("*"))
    inode = (box.stack / "etc/lower").stat().st_ino
    assert box.shell("inode", "stat -c '%i %u' /etc/lower").split() == [str(inode), "0"]
    box.shell(
        "change",
        "echo more >> /etc/lower; rm /etc/passwd; mv /srv/deep /srv/renamed; echo x > /srv/renamed/new",
    )
    assert box.shell("see", "cat /etc/lower /srv/renamed/file; ls /etc/passwd /srv/deep 2>/dev/null; :") == (
        "from the stack\nmore\ndeep\n"
    )
    assert (box.stack / "etc/lower").read_text() == "from the stack\n"
    assert before == sorted(str(path) for path in box.stack.rglob("*"))
    assert (box.folder / "disk/upper/etc/lower").stat().st_uid == ID_BASE
    whiteout = (box.folder / "disk/upper/etc/passwd").lstat()
    assert stat.S_ISCHR(whiteout.st_mode)


def test_home_is_a_second_overlay(box: Box) -> None:
    """The droplet lies over the stack's home, and what vcap writes goes to the home's own upper."""
    keys = ("uid", 2000, "gid", 2000, "cwd", "/home/vcap")
    assert box.shell("read", "cat app/run; echo mine > file; stat -c %u file", keys=keys) == "droplet\n2000\n"
    assert (box.folder / "home-disk/upper/file").stat().st_uid == ID_BASE + 2000
    assert not (box.folder / "disk/upper/home/vcap/file").exists()


def test_files_and_binds(box: Box) -> None:
    """Files of the plan are root's with their mode; a writable bind reaches the host."""
    assert box.shell("hosts", "cat /etc/hosts; stat -c '%u %a' /etc/hosts /etc/new/secret") == (
        "127.0.0.1 localhost\n0 644\n0 600\n"
    )
    box.shell("write", "cat /mnt/ro/file /mnt/one-file; echo out > /mnt/rw/from-inside")
    assert (box.folder / "rw/from-inside").read_text() == "out\n"


def test_a_filter_is_installed_as_it_is(tmp_path: Path) -> None:
    """A system call that the filter refuses fails in a job with the filter's errno."""
    box = Box.prepare(tmp_path, "static")
    try:
        box.launch("seccomp", REFUSE_MKDIR)
        ended, _, err = box.run("job", "/bin/mkdir", "/tmp/new")
        assert ended == ["ok", "exit", "1"]
        assert "Operation not permitted" in err
        assert status_of(box.shell("status", "cat /proc/self/status"))["Seccomp"] == "2"
    finally:
        box.kill()


def test_ipv6_is_off_but_for_the_loopback(box: Box) -> None:
    """Interfaces born inside have no IPv6; lo is up with both."""
    assert box.shell("default", "cat /proc/sys/net/ipv6/conf/default/disable_ipv6").strip() == "1"
    text = box.shell("lo", "ip addr show lo")
    assert "127.0.0.1/8" in text
    assert "::1/128" in text
