"""The worker's seccomp filter, run by a small interpreter of BPF: for both architectures, without either."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
from bpf import ARCHITECTURES, verdict

from agent.droplets import jail
from agent.droplets.jail import ALLOW, ERRNO, KILL_PROCESS, make_filter
from container.syscalls import NUMBERS, TABLES

pytestmark = pytest.mark.unit

COLUMN = {"x86_64": 0, "aarch64": 1}
EPERM = ERRNO | errno.EPERM


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_exactly_the_listed_calls_are_allowed(arch: str) -> None:
    """Every other number is answered EPERM, those of the x32 interface too."""
    code, audit, column = make_filter(arch), ARCHITECTURES[arch], COLUMN[arch]
    listed = {numbers[column] for numbers in jail._ALLOWED.values()}
    listed |= {numbers[column] for numbers in jail._WITH_MODE.values()}

    allowed = {number for number in range(600) if verdict(code, audit, number) == ALLOW}

    assert allowed == listed
    others = {verdict(code, audit, number) for number in {*range(600)} - allowed}
    x32 = {verdict(code, audit, number | 0x40000000) for number in range(600)}
    assert others == x32 == {EPERM}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_an_app_may_not_is_not_the_workers_either(arch: str) -> None:
    """No number of the containers' own list of dangerous calls has slipped in."""
    code, audit = make_filter(arch), ARCHITECTURES[arch]

    column = TABLES.index(arch)
    dangerous = {name: numbers[column] for name, numbers in NUMBERS.items() if numbers[column] is not None}
    tracing = {"x86_64": (101, 310, 311), "aarch64": (117, 270, 271)}[
        arch
    ]  # which an app may, in its own container
    dangerous |= dict(zip(("ptrace", "process_vm_readv", "process_vm_writev"), tracing, strict=True))
    passed = {name for name, number in dangerous.items() if verdict(code, audit, number or 0) == ALLOW}

    assert passed == set()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", jail._WITH_MODE)
def test_a_mode_has_nine_bits(arch: str, name: str) -> None:
    """Set-uid, set-gid and sticky are refused wherever a call takes a mode."""
    *numbers, argument = jail._WITH_MODE[name]
    code, audit, number = make_filter(arch), ARCHITECTURES[arch], numbers[COLUMN[arch]]

    said = {
        mode: verdict(code, audit, number, *[0] * argument, mode)
        for mode in (0, 0o777, 0o1000, 0o2755, 0o4755)
    }

    assert said == {0: ALLOW, 0o777: ALLOW, 0o1000: EPERM, 0o2755: EPERM, 0o4755: EPERM}


def test_a_foreign_architecture_is_the_end() -> None:
    """Its numbers mean other calls."""
    assert verdict(make_filter("x86_64"), ARCHITECTURES["aarch64"], 0) == KILL_PROCESS
    assert verdict(make_filter("aarch64"), 0x40000003, 63) == KILL_PROCESS


def test_an_architecture_without_a_table_has_no_filter() -> None:
    with pytest.raises(KeyError):
        make_filter("riscv64")


def test_the_worker_loads_only_what_it_needs() -> None:
    """The container manager's network library alone would cost every droplet a quarter of a second."""
    program = "import sys, agent.droplets.unpack; print(*sorted(sys.modules))"

    modules = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    loaded = {name.split(".")[0] for name in modules}

    assert not {"asyncio", "pyroute2", "aiohttp", "msgspec", "socket"} & loaded
    of_container = {".".join(name.split(".")[:2]) for name in modules if name.startswith("container")}
    assert of_container == {"container", "container.linux"}
