"""The jobs' seccomp filter, run by an interpreter of BPF: for all four tables of calls, without any of the machines."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from bpf import ARCHITECTURES, COMPAT, verdict

from container.seccomp import ALLOW, DEFAULT_PROFILE, ERRNO, KILL_PROCESS, compile_filter
from container.syscalls import NUMBERS, OF_MACHINE, TABLES

pytestmark = pytest.mark.unit

AUDIT = {**ARCHITECTURES, **COMPAT}
MACHINE = {table: machine for machine, tables in OF_MACHINE.items() for table in tables}
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
#: The kernel's own tables, where its headers are installed; the last is that of aarch64 and all newer ones.
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "i386": Path("/usr/include/x86_64-linux-gnu/asm/unistd_32.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
#: arch/arm/tools/syscall.tbl, of calls that have numbers of their own there; Debian has no header of it without a cross compiler.
ARM = {
    "mount": 21, "acct": 51, "umount2": 52, "ioctl": 54, "ustat": 62, "sethostname": 74, "settimeofday": 79, "uselib": 86,
    "swapon": 87, "reboot": 88, "syslog": 103, "vhangup": 111, "swapoff": 115, "clone": 120, "setdomainname": 121,
    "init_module": 128, "delete_module": 129, "quotactl": 131, "sysfs": 135, "personality": 136, "_sysctl": 149,
    "nfsservctl": 169, "pivot_root": 218, "lookup_dcookie": 249, "clock_settime": 262, "socket": 281, "add_key": 309,
    "request_key": 310, "keyctl": 311, "mbind": 319, "get_mempolicy": 320, "set_mempolicy": 321, "unshare": 337,
    "move_pages": 344, "kexec_load": 347, "perf_event_open": 364, "fanotify_init": 367, "open_by_handle_at": 371, "setns": 375,
    "kcmp": 378, "finit_module": 379, "bpf": 386, "userfaultfd": 388, "migrate_pages": 400, "kexec_file_load": 401,
    "clock_settime64": 404,
}  # fmt: skip
#: What a debugger and a sanitizer need, by table.
TRACING = {
    "x86_64": (101, 310, 311),
    "i386": (26, 347, 348),
    "aarch64": (117, 270, 271),
    "arm": (26, 376, 377),
}
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
DOC = Path(__file__).resolve().parents[2] / "docs/seccomp.md"


@dataclass(frozen=True)
class Filter:
    """The default filter of a machine, asked for calls of one of its tables by name."""

    table: str
    code: bytes

    def number(self, name: str) -> int | None:
        return NUMBERS[name][TABLES.index(self.table)]

    def says(self, number: int | None, *arguments: int) -> int:
        assert number is not None
        return verdict(self.code, AUDIT[self.table], number, *arguments)


def filter_of(table: str) -> Filter:
    return Filter(table, compile_filter(DEFAULT_PROFILE, MACHINE[table]))


@pytest.fixture(params=TABLES)
def jobs(request: pytest.FixtureRequest) -> Filter:
    return filter_of(request.param)


def test_exactly_the_named_calls_are_refused(jobs: Filter) -> None:
    """Every number up to the last known one is allowed but those of the profile, with the profile's own error."""
    named = {jobs.number(name): ERRNO | error for name, error in DEFAULT_PROFILE.refused.items()}
    by_argument = {jobs.number(name) for name in DEFAULT_PROFILE.arguments}
    numbers = set(range(DEFAULT_PROFILE.last_known + 1)) - by_argument

    assert {number: jobs.says(number) for number in numbers} == {
        number: named.get(number, ALLOW) for number in numbers
    }


def test_what_undoes_a_container_is_refused(jobs: Filter) -> None:
    """Mounting in both ways, namespaces, keys, modules: EPERM, for root inside as for anybody."""
    listed = (
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
            "pidfd_getfd",
        ),
        *("bpf", "perf_event_open", "keyctl", "add_key", "request_key", "userfaultfd", "open_by_handle_at"),
        *("init_module", "finit_module", "delete_module", "kexec_load", "reboot", "swapon", "syslog", "acct"),
    )
    names = [name for name in listed if jobs.number(name) is not None]

    assert len(names) >= len(listed) - 1
    assert {name: jobs.says(jobs.number(name)) for name in names} == dict.fromkeys(names, EPERM)


def test_a_program_may_trace_its_like(jobs: Filter) -> None:
    """gdb, strace, LeakSanitizer. Who may be traced is the kernel's to say: pid 1 and a job before its exec are not."""
    assert {jobs.says(number) for number in TRACING[jobs.table]} == {ALLOW}


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


def test_another_machines_calls_are_killed() -> None:
    """A kernel answers by two tables; what comes by a third one is nobody's program."""
    for machine, tables in OF_MACHINE.items():
        code = compile_filter(DEFAULT_PROFILE, machine)
        others = {AUDIT[table] for table in TABLES if table not in tables}
        assert {verdict(code, other, number) for other in others for number in (0, 5, 56)} == {KILL_PROCESS}


def test_the_x32_interface_is_not_there() -> None:
    """Its numbers are those of x86_64 with one bit more, which would pass by every comparison."""
    jobs = filter_of("x86_64")
    assert {jobs.says(number | 0x40000000) for number in range(600)} == {ENOSYS}


def test_no_call_of_i386_hides_what_another_refuses() -> None:
    """socketcall has its family in memory: a program falls back on `socket`, whose family is looked at; and i386's own old calls."""
    jobs = filter_of("i386")
    assert jobs.says(102) == ENOSYS
    assert [jobs.says(359, family) for family in (1, 2, 38, 40)] == [ALLOW, ALLOW, EPERM, EPERM]
    umount, stime, vm86old, vm86, clock_settime64 = 22, 25, 113, 166, 404
    assert {jobs.says(at) for at in (umount, stime, vm86old, vm86, clock_settime64)} == {EPERM}


def test_private_calls_of_arm_are_there_and_no_more() -> None:
    """Without set_tls and cacheflush no program of arm begins; they lie above everything else."""
    jobs = filter_of("arm")
    allowed = {at for at in range(0xF0000, 0xF0010) if jobs.says(at) == ALLOW}
    assert allowed == {0xF0001, 0xF0002, 0xF0005}


def test_the_kernel_takes_the_filter(jobs: Filter) -> None:
    """Within the kernel's count of instructions, and wshd's."""
    assert 0 < len(jobs.code) // 8 <= MAX_INSTRUCTIONS


@pytest.mark.parametrize("table", HEADERS)
def test_numbers_are_the_kernels(table: str) -> None:
    """Against the kernel's own headers, as far as these know the name; what one lacks has no number there."""
    define = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)")
    theirs = {name: int(number) for name, number in define.findall(HEADERS[table].read_text())}
    if table == "aarch64":
        del theirs["clock_settime64"]  # the header is that of 32-bit machines too
    ours = {name: numbers[TABLES.index(table)] for name, numbers in NUMBERS.items()}
    newest = max(theirs.values())

    assert {name: number for name, number in ours.items() if name in theirs} == {
        name: theirs[name] for name in ours if name in theirs
    }
    assert [
        name
        for name, number in ours.items()
        if number is not None and number <= newest and name not in theirs
    ] == []


def test_numbers_of_arm_are_the_kernels() -> None:
    """Its own up to 402; from 403 on every table has the same, but for 32-bit ones with a wide time."""
    for name, (_, i386, aarch64, arm) in NUMBERS.items():
        if name in ARM:
            assert arm == ARM[name], name
        else:
            assert arm is None or (403 <= arm == aarch64 == i386), name


def test_an_unknown_machine_has_no_filter() -> None:
    """Better no container than one without a filter."""
    with pytest.raises(KeyError):
        compile_filter(DEFAULT_PROFILE, "riscv64")


def rows() -> dict[str, list[str]]:
    """The table of the documentation: a call's name to its cells."""
    found = {}
    for line in DOC.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 7:
            assert cells[0] not in found, f"{cells[0]} stands there twice"
            found[cells[0].strip("`")] = cells[1:]
    return found


def test_the_documentation_says_what_the_table_holds() -> None:
    """Each call of the profile and none else, with its number in each table."""
    dash = "\u2013"
    ours = {
        name: [dash if number is None else str(number) for number in numbers]
        for name, numbers in NUMBERS.items()
    }
    assert {name: cells[:4] for name, cells in rows().items()} == ours


def test_the_documentation_says_what_the_filter_answers(jobs: Filter) -> None:
    """`EPERM` and `ENOSYS` as they stand there; `by argument`: neither always."""
    for name, cells in rows().items():
        if (number := jobs.number(name)) is None:
            continue
        answers = {
            jobs.says(number, *([value] * 6)) for value in (0, 2, 38, 40, 0x5412, 0x40000000, 0xFFFFFFFF)
        }
        match cells[4]:
            case "EPERM":
                assert answers == {EPERM}, name
            case "ENOSYS":
                assert answers == {ENOSYS}, name
            case "by argument":
                assert answers == {EPERM, ALLOW}, name
            case other:
                raise AssertionError(f"{name}: {other}")


def test_the_documentation_names_what_is_open_and_was_weighed(jobs: Filter) -> None:
    """The calls that are open on purpose are not in the profile."""
    text = DOC.read_text()
    for name in (
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "adjtimex",
        "clock_adjtime",
        "name_to_handle_at",
    ):
        assert f"`{name}`" in text
        assert name not in NUMBERS
