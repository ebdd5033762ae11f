"""The jobs' seccomp filter, run by an interpreter of BPF: for both architectures, without either."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from bpf import ARCHITECTURES, verdict

from container.seccomp import ALLOW, DEFAULT_PROFILE, ERRNO, KILL_PROCESS, NUMBERS, compile_filter

pytestmark = pytest.mark.unit

COLUMN = {"x86_64": 0, "aarch64": 1}
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
#: The kernel's own tables, where its headers are installed; the second is that of aarch64 and all newer ones.
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS


class Filter:
    """The default filter of one architecture, asked by name."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.code = compile_filter(DEFAULT_PROFILE, arch)

    def number(self, name: str) -> int | None:
        return NUMBERS[name][COLUMN[self.arch]]

    def says(self, number: int | None, *arguments: int) -> int:
        assert number is not None
        return verdict(self.code, ARCHITECTURES[self.arch], number, *arguments)


@pytest.fixture(params=ARCHITECTURES)
def jobs(request: pytest.FixtureRequest) -> Filter:
    return Filter(request.param)


def test_exactly_the_named_calls_are_refused(jobs: Filter) -> None:
    """Every number up to the last known one is allowed but those of the profile, with the profile's own error."""
    named = {jobs.number(name): ERRNO | error for name, error in DEFAULT_PROFILE.refused.items()}
    by_argument = {jobs.number(name) for name in DEFAULT_PROFILE.arguments}
    numbers = set(range(DEFAULT_PROFILE.last_known + 1)) - by_argument

    assert {number: jobs.says(number) for number in numbers} == {
        number: named.get(number, ALLOW) for number in numbers
    }


def test_what_undoes_a_container_is_refused(jobs: Filter) -> None:
    """Mounting in both ways, namespaces, tracing, keys, modules: EPERM, for root inside as for anybody."""
    names = (
        *(
            "mount",
            "umount2",
            "pivot_root",
            "move_mount",
            "open_tree",
            "fsopen",
            "fsmount",
            "fsconfig",
            "fspick",
        ),
        *(
            "mount_setattr",
            "unshare",
            "setns",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "pidfd_getfd",
        ),
        *("bpf", "perf_event_open", "keyctl", "add_key", "request_key", "userfaultfd", "open_by_handle_at"),
        *("init_module", "finit_module", "delete_module", "kexec_load", "reboot", "swapon", "syslog", "acct"),
    )

    assert {name: jobs.says(jobs.number(name)) for name in names} == dict.fromkeys(names, EPERM)


def test_clone3_is_not_there(jobs: Filter) -> None:
    """Its flags lie in memory, where no filter sees them; with EPERM instead no thread would start."""
    assert jobs.says(jobs.number("clone3")) == ENOSYS


def test_a_clone_of_namespaces_is_refused_and_a_thread_is_not(jobs: Filter) -> None:
    """Each namespace flag alone, user namespaces among them, also with bits set that the kernel ignores."""
    clone = jobs.number("clone")
    thread, fork = 0x3D0F00, 0x01200011
    namespaces = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)

    assert [jobs.says(clone, flags) for flags in (thread, fork, 17, 0)] == [ALLOW] * 4
    assert {jobs.says(clone, flag | 17) for flag in namespaces} == {EPERM}
    assert {jobs.says(clone, flag | 17 | 1 << 40) for flag in namespaces} == {EPERM}


def test_arguments_are_judged_as_the_kernel_reads_them(jobs: Filter) -> None:
    """A request of ioctl, a domain and a persona are 32 bits wide: bits above them change nothing."""
    ioctl, socket, personality = (jobs.number(name) for name in ("ioctl", "socket", "personality"))
    tiocsti, tioclinux, tiocgwinsz = 0x5412, 0x541C, 0x5413
    af_unix, af_inet, af_alg, af_vsock = 1, 2, 38, 40
    linux, linux32, no_random, query = 0, 8, 0x40000, 0xFFFFFFFF

    assert jobs.says(ioctl, 0, tiocgwinsz) == ALLOW
    assert {jobs.says(ioctl, 0, at) for at in (tiocsti, tioclinux, tiocsti | 1 << 32)} == {EPERM}
    assert {jobs.says(socket, at) for at in (af_unix, af_inet)} == {ALLOW}
    assert {jobs.says(socket, at) for at in (af_alg, af_vsock, af_alg | 1 << 32)} == {EPERM}
    assert {jobs.says(personality, at) for at in (linux, linux32, query)} == {ALLOW}
    assert jobs.says(personality, no_random) == EPERM


def test_what_a_newer_kernel_adds_is_not_there(jobs: Filter) -> None:
    """Numbers above those known when this was written answer ENOSYS, so that libc falls back."""
    unknown = [DEFAULT_PROFILE.last_known + 1, 500, 1000, 0x3FFFFFFF]
    assert {jobs.says(number) for number in unknown} == {ENOSYS}


def test_another_architecture_is_killed() -> None:
    """i386 calls on x86_64 have numbers of their own: open there would be mount here."""
    i386, arm = 0x40000003, 0x40000028
    for arch in ARCHITECTURES:
        code = compile_filter(DEFAULT_PROFILE, arch)
        others = {*ARCHITECTURES.values(), i386, arm} - {ARCHITECTURES[arch]}
        assert {verdict(code, other, number) for other in others for number in (0, 5, 56)} == {KILL_PROCESS}


def test_the_x32_interface_is_not_there() -> None:
    """Its numbers are those of x86_64 with one bit more, which would pass by every comparison."""
    jobs = Filter("x86_64")
    assert {jobs.says(number | 0x40000000) for number in range(600)} == {ENOSYS}


def test_the_kernel_takes_the_filter(jobs: Filter) -> None:
    """Within the kernel's count of instructions, and wshd's."""
    assert 0 < len(jobs.code) // 8 <= MAX_INSTRUCTIONS


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_numbers_are_the_kernels(arch: str) -> None:
    """Against the kernel's own headers, as far as these know the name; what one lacks has no number there."""
    define = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)")
    table = {name: int(number) for name, number in define.findall(HEADERS[arch].read_text())}
    ours = {name: numbers[COLUMN[arch]] for name, numbers in NUMBERS.items()}
    newest = max(table.values())

    assert {name: number for name, number in ours.items() if name in table} == {
        name: table[name] for name in ours if name in table
    }
    assert [
        name for name, number in ours.items() if number is not None and number <= newest and name not in table
    ] == []


def test_an_unknown_machine_has_no_filter() -> None:
    """Better no container than one without a filter."""
    with pytest.raises(KeyError):
        compile_filter(DEFAULT_PROFILE, "riscv64")
