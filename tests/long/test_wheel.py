"""The Python package: built from the checkout, installed beside nothing of it, and complete."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*argv: str | Path, cwd: Path) -> str:
    """Standard output; what failed and its words otherwise."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", out, ROOT, cwd=out)
    (built,) = out.glob("garrison-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and the checkout's libraries, and without the checkout.

    A path in a .pth file is searched, but the .pth files found there are not read (Python's `site` module): the libraries are seen, the
    checkout, which such a file installs, is not. Nothing is downloaded.
    """
    home = tmp_path_factory.mktemp("installed")
    run("/usr/bin/python3", "-m", "venv", home / "venv", cwd=home)
    pip = (home / "venv/bin/python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    (site,) = (home / "venv/lib").glob("python3*/site-packages")
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return home


def test_the_wheel_holds_each_package_and_both_programs(wheel: Path) -> None:
    """Nothing that the agent needs at run time stays behind in the checkout."""
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = run(
        "git", "ls-files", "agent", "container", "rootfs_builder", "wsh", "buildpacks", cwd=ROOT
    ).split()
    wanted = {name for name in tracked if name.endswith(".py") or name.startswith("buildpacks/")}
    wanted |= {"wsh/_bin/wshd", "wsh/_bin/wsh"}
    assert wanted - names == set()


def test_an_installed_garrison_runs_without_the_checkout(installed: Path) -> None:
    """The command starts, knows its programs and takes nothing from the checkout."""
    garrison = installed / "venv/bin/garrison"
    assert run(garrison, "--version", cwd=installed).startswith("garrison")
    program = "import wsh, agent, container; print(wsh.__file__, agent.__file__, container.__file__)"
    places = run(installed / "venv/bin/python", "-c", program, cwd=installed).split()
    assert all(place.startswith(str(installed)) for place in places)
    for name in ("wshd", "wsh"):
        (binary,) = (installed / "venv/lib").glob(f"python3*/site-packages/wsh/_bin/{name}")
        assert os.access(binary, os.X_OK), f"{binary} is not executable"
