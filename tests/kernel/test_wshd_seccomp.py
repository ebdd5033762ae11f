"""Jobs under the system call filter of containers: what ordinary programs need works, and what would reach the host does not."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from wshd_driver import BUILDS, Box, running

from container.seccomp import DEFAULT_PROFILE, compile_filter

pytestmark = pytest.mark.kernel
VCAP = ("uid", 2000, "gid", 2000)


@pytest.fixture(params=BUILDS)
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    (tmp_path / "tools").mkdir()
    code = compile_filter(DEFAULT_PROFILE, platform.machine())
    yield from running(
        tmp_path, request.param, "seccomp", code.hex(), "bind", str(tmp_path / "tools"), "/tools", "ro"
    )


def build(box: Box, name: str, source: str, *flags: str) -> str:
    text = box.folder / f"{name}.c"
    text.write_text(source)
    subprocess.run(["gcc", "-O1", "-static", *flags, "-o", box.folder / "tools" / name, text], check=True)
    return f"/tools/{name}"


#: Without a library: a distribution has none for 32 bits unless asked.
I386 = r"""
static long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return result;
}
static void tell(const char *name, long value)
{
    char line[64];
    int at = 0, size = 0;
    char digits[16];
    while (name[at]) { line[at] = name[at]; at++; }
    line[at++] = ' ';
    if (value < 0) { line[at++] = '-'; value = -value; } else value = 0;
    do digits[size++] = (char)('0' + value % 10); while (value /= 10);
    while (size) line[at++] = digits[--size];
    line[at++] = '\n';
    call(4, 1, (long)line, at, 0, 0);
}
void _start(void)
{
    static long arguments[] = {2, 1, 0};
    tell("getpid", call(20, 0, 0, 0, 0, 0));
    tell("socket-inet", call(359, 2, 1, 0, 0, 0));
    tell("socket-alg", call(359, 38, 5, 0, 0, 0));
    tell("socket-vsock", call(359, 40, 1, 0, 0, 0));
    tell("socketcall", call(102, 1, (long)arguments, 0, 0, 0));
    tell("mount", call(21, 0, 0, 0, 0, 0));
    tell("umount", call(22, 0, 0, 0, 0, 0));
    tell("unshare", call(310, 0x10000000, 0, 0, 0, 0));
    tell("clone3", call(435, 0, 0, 0, 0, 0));
    tell("io_uring", call(425, 0, 0, 0, 0, 0));
    tell("setxattrat", call(463, 0, 0, 0, 0, 0));
    call(1, 7, 0, 0, 0, 0);
}
"""
ANSWERS = """getpid 0
socket-inet 0
socket-alg -1
socket-vsock -1
socketcall -38
mount -1
umount -1
unshare -1
clone3 -38
io_uring -38
setxattrat -38
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="i386 is the second table of x86_64")
@pytest.mark.parametrize("keys", [(), VCAP], ids=["root", "vcap"])
def test_a_32_bit_program_runs_by_the_same_rules(box: Box, keys: tuple[str | int, ...]) -> None:
    """It died of SIGSYS without a word; now its calls are answered as those of 64 bits are."""
    flags = (
        "-m32",
        "-nostdlib",
        "-ffreestanding",
        "-fno-pic",
        "-no-pie",
        "-fno-stack-protector",
        "-fcf-protection=none",
    )
    program = build(box, "i386", I386, *flags)
    ended, out, err = box.run("job", program, keys=keys)
    assert (ended, out) == (["ok", "exit", "7"], ANSWERS), err


TRACE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
static long secret = 1;
int main(void)
{
    int status, stops = 0;
    pid_t child = fork();
    if (child == 0) {
        secret = 42;
        if (ptrace(PTRACE_TRACEME, 0, 0, 0)) _exit(9);
        raise(SIGSTOP);
        if (secret != 43) _exit(8);
        (void)getppid();
        _exit(5);
    }
    waitpid(child, &status, 0);
    long read_back = 0;
    struct iovec here = {&read_back, sizeof read_back}, there = {&secret, sizeof secret};
    if (process_vm_readv(child, &here, 1, &there, 1, 0) != sizeof read_back || read_back != 42) return printf("readv %d\n", errno);
    if (ptrace(PTRACE_PEEKDATA, child, &secret, 0) != 42) return printf("peek %d\n", errno);
    read_back = 43;
    if (process_vm_writev(child, &here, 1, &there, 1, 0) != sizeof read_back) return printf("writev %d\n", errno);
    while (!ptrace(PTRACE_SYSCALL, child, 0, 0) && waitpid(child, &status, 0) == child && WIFSTOPPED(status)) stops++;
    /* one that was not born traced */
    pid_t other = fork();
    if (other == 0) for (;;) pause();
    if (ptrace(PTRACE_SEIZE, other, 0, 0) || ptrace(PTRACE_INTERRUPT, other, 0, 0)) return printf("seize %d\n", errno);
    waitpid(other, NULL, 0);
    kill(other, SIGKILL);
    printf("traced, exit %d, %s\n", WEXITSTATUS(status), stops >= 3 ? "stops" : "no stops");
    return 0;
}
"""


@pytest.mark.parametrize("keys", [(), VCAP], ids=["root", "vcap"])
def test_a_program_traces_its_own_children(box: Box, keys: tuple[str | int, ...]) -> None:
    """As strace and gdb do: stop, step, read and write memory, seize."""
    ended, out, err = box.run("job", build(box, "trace", TRACE), keys=keys)
    assert (ended, out) == (["ok", "exit", "0"], "traced, exit 5, stops\n"), err


#: Goes through all processes again and again until its input ends, and tells which it could take hold of.
HUNT = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <unistd.h>
int main(void)
{
    struct pollfd in = {0, POLLIN, 0};
    long rounds = 0, seen = 0, held = 0;
    char path[64], bytes[8];
    printf("hunting\n");
    fflush(stdout);
    for (; !poll(&in, 1, 0); rounds++) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; (entry = readdir(proc));) {
            int pid = atoi(entry->d_name), fd;
            if (pid <= 0 || pid == getpid()) continue;
            seen += pid != 1;
            struct iovec here = {bytes, 8}, there = {(void *)0x400000, 8};
            held += process_vm_readv(pid, &here, 1, &there, 1, 0) > 0;
            for (const char *const *name = (const char *const[]){"mem", "environ", "maps", "fd/0", NULL}; *name; name++) {
                snprintf(path, sizeof path, "/proc/%d/%s", pid, *name);
                if ((fd = open(path, O_RDONLY)) >= 0) { held += read(fd, bytes, 1) > 0; close(fd); }
            }
            if (!ptrace(PTRACE_SEIZE, pid, 0, 0)) { held++; ptrace(PTRACE_DETACH, pid, 0, 0); }
        }
        closedir(proc);
    }
    printf("%s %ld\n", seen ? "met" : "alone", held);
    return 0;
}
"""


@pytest.mark.parametrize("keys", [(), VCAP], ids=["root", "vcap"])
def test_nobody_takes_hold_of_pid_1_or_of_a_job_before_its_exec(
    box: Box, keys: tuple[str | int, ...]
) -> None:
    """A program that hunts meets jobs of its own user between fork and exec: their memory is still pid 1's."""
    hunter = build(box, "hunt", HUNT)
    read_end, write_end = os.pipe()
    #: Sixty thousand directories of a PATH that hold no such program: so long does it stand before an exec that never comes.
    long_path = "PATH=" + ":" * 60_000
    with box.spool("hunter").opened() as fds, box.client() as client:
        words = (
            "spawn",
            "hunter",
            "arg",
            hunter,
            "fd",
            "stdin",
            "fd",
            "stdout",
            "fd",
            "stderr",
            "fd",
            "record",
        )
        assert client.ask(*words, *keys, fds=[read_end, *fds]).ok
    while "hunting" not in box.spool("hunter").out.read_text():
        assert box.alive()
    for number in range(12):
        reply = box.spawn(f"prey-{number}", "no-such-program", keys=("env", long_path, *keys))
        assert reply.words[:2] == ["error", "ENOENT"]
    os.write(write_end, b"x")
    assert box.wait("hunter") == ["ok", "exit", "0"]
    os.close(read_end)
    os.close(write_end)
    assert box.spool("hunter").out.read_text().split()[1:] == ["met", "0"]
