"""The recipes: how the tree of each stack is made.

A recipe fills an empty directory and returns the packages that it installed. `finish` then makes what is the same in every
stack: the user vcap, empty mount points, /app, the locale; and removes device nodes and the host's name.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from rootfs_builder.apt import host_options, host_sources
from rootfs_builder.stack import BuildError, Stack, building, publish
from wsh.stacks import ROOTFS
from wsh.vcap import VCAP_HOME, VCAP_ID

Progress = Callable[[str], object]
Recipe = Callable[[Path, Progress], tuple[str, ...]]

SUITE = "bookworm"
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
DEBIAN_PACKAGES = ("bash", "ca-certificates", "python3", "python3-venv", "tar")

#: (directory, mode, owner) of the mount points of a container, and of the directories that an app may write to.
_MOUNT_POINTS = (
    ("dev", 0o755, 0),
    ("proc", 0o555, 0),
    ("sys", 0o555, 0),
    ("run", 0o755, 0),
    ("root", 0o700, 0),
    ("tmp", 0o1777, 0),
    ("var", 0o755, 0),
    ("var/tmp", 0o1777, 0),
    ("home", 0o755, 0),
    (VCAP_HOME.lstrip("/"), 0o755, VCAP_ID),
)
#: Files of apt and dpkg that are removed: caches, lists, logs, and files that name the host or its mirrors.
_LEFT_OVER = (
    "etc/apt/sources.list",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/hostname",
    "etc/resolv.conf",
    "var/log/apt",
    "var/log/dpkg.log",
    "var/log/alternatives.log",
    "var/log/bootstrap.log",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/lib/dpkg/status-old",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
)


def default_stacks_dir() -> Path:
    """``$XDG_CACHE_HOME/garrison/stacks``, or the same below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "garrison" / "stacks"


def _run(step: str, argv: list[str], *, env: Mapping[str, str] | None = None) -> str:
    """Run one program and return its output. BuildError: it is missing or failed; the text has its last five lines."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", env=env, check=False)
    except FileNotFoundError as e:
        raise BuildError(f"{step}: the program {argv[0]} is not installed") from e
    if done.returncode != 0:
        last_lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise BuildError(f"{step}: {argv[0]} ended with status {done.returncode}: {last_lines}")
    return done.stdout


def _replace(path: Path, text: str) -> None:
    """Write a file of the tree. A link that a package put there is replaced, never followed: it may lead to the host."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o644)


def _add_line(path: Path, line: str) -> None:
    old = path.read_text() if path.exists() else ""
    _replace(path, f"{old}{line}\n")


def finish(root: Path) -> None:
    """Make what is the same in every stack, and remove what must not be in any."""
    for relative in _LEFT_OVER:
        path = root / relative
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for directory in ("dev", "proc", "sys", "run", "tmp"):
        shutil.rmtree(root / directory, ignore_errors=True)
    for relative, mode, owner in _MOUNT_POINTS:
        path = root / relative
        path.mkdir(exist_ok=True)
        os.chown(path, owner, owner)
        path.chmod(mode)
    _add_line(root / "etc/passwd", f"vcap:x:{VCAP_ID}:{VCAP_ID}:vcap:{VCAP_HOME}:{_shell(root)}")
    _add_line(root / "etc/group", f"vcap:x:{VCAP_ID}:")
    for name in ("hosts", "hostname", "resolv.conf"):
        _replace(root / "etc" / name, "")
    _replace(root / "etc/default/locale", "LANG=C.UTF-8\n")
    (root / "app").symlink_to("home/vcap/app")
    for directory, _, files in os.walk(root):
        for name in files:
            path = Path(directory) / name
            kind = path.lstat().st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
                path.unlink()


def _shell(root: Path) -> str:
    return "/bin/bash" if (root / "bin/bash").exists() else "/bin/sh"


def _busybox_program(scratch: Path) -> tuple[Path, str]:
    """A static busybox and its ``package=version``: the host's own, else from the package, fetched by the host's apt."""
    known = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package}=${Version}", "busybox-static"],
        capture_output=True,
        text=True,
        check=False,
    )
    if known.returncode == 0 and Path("/bin/busybox").is_file():
        return Path("/bin/busybox"), known.stdout
    download = ["sh", "-c", 'cd "$1" && exec apt-get download busybox-static', "sh", str(scratch)]
    _run("fetching busybox-static", download)
    archive = next(scratch.glob("busybox-static_*.deb"))
    _run("unpacking busybox-static", ["dpkg-deb", "-x", str(archive), str(scratch / "x")])
    package = _run(
        "reading busybox-static", ["dpkg-deb", "--show", "--showformat=${Package}=${Version}", str(archive)]
    )
    return next(path for path in scratch.glob("x/**/bin/busybox")), package


def busybox(root: Path, progress: Progress) -> tuple[str, ...]:
    """busybox and a link for each applet: enough for kernel tests, not for apps."""
    progress("copying the static busybox of the host")
    for directory in ("bin", "sbin", "etc", "usr", "usr/bin", "usr/sbin", "var"):
        (root / directory).mkdir(mode=0o755)
    with tempfile.TemporaryDirectory(prefix="garrison-busybox-") as scratch:
        program, package = _busybox_program(Path(scratch))
        shutil.copyfile(program, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    for applet in _run("listing applets", [str(root / "bin/busybox"), "--list-full"]).split():
        if not (root / applet).exists():
            (root / applet).symlink_to("/bin/busybox")
    if not (root / "bin/sh").is_symlink():
        raise BuildError("busybox: expected an applet named sh, it has none")
    _replace(root / "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    _replace(root / "etc/group", "root:x:0:\nnogroup:x:65534:\n")
    return (package,)


def debian(root: Path, progress: Progress) -> tuple[str, ...]:
    """Debian 12, minimal, with Python: what apps are staged and run on."""
    sources = host_sources(SUITE)
    if not sources:
        raise BuildError(f"debian: /etc/apt has no source for {SUITE}; add one to sources.list.d")
    progress(f"mmdebstrap: {SUITE} from the host's apt sources (about 40 s)")
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--skip=output/dev"]
    argv += [f"--include={','.join(DEBIAN_PACKAGES)}"]
    argv += [f"--aptopt={option}" for option in (*host_options(), 'Apt::Install-Recommends "false"')]
    for unwanted in ("doc", "man", "info", "locale", "lintian", "bug"):
        argv += [f"--dpkgopt=path-exclude=/usr/share/{unwanted}/*"]
    argv += [SUITE, str(root), *sources]
    # In a mount namespace of its own, so that the mounts of a killed mmdebstrap end with it. With the distribution's PATH,
    # because mmdebstrap's tarfilter is a Python script, which must get the distribution's python3.
    env = {**os.environ, "PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "TMPDIR": tempfile.gettempdir()}
    _run("mmdebstrap", ["unshare", "--mount", "--propagation", "private", *argv], env=env)
    progress("removing caches")
    query = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package}=${Version}\n"]
    packages = tuple(_run("listing packages", query).split())
    for cache in root.glob("usr/**/__pycache__"):
        shutil.rmtree(cache)
    return packages


RECIPES: Mapping[str, Recipe] = {"busybox": busybox, "debian": debian}


def build(
    name: str,
    stacks_dir: Path | None = None,
    progress: Progress = lambda _: None,
    *,
    recipe: Recipe | None = None,
) -> Stack:
    """Build a stack, and replace its predecessor in one step. After an error the predecessor is still there.

    ``recipe`` overrides that of ``name``. BuildError: the name is unknown, a step failed, or this is not root on Linux.
    """
    recipe = recipe or RECIPES.get(name)
    if recipe is None:
        raise BuildError(f"stack: expected one of {', '.join(RECIPES)}, got {name!r}")
    if os.geteuid() != 0 or platform.system() != "Linux":
        raise BuildError("building a root file system needs root on Linux")
    stacks_dir = stacks_dir or default_stacks_dir()
    with building(stacks_dir) as fresh:
        packages = recipe(fresh / ROOTFS, progress)
        finish(fresh / ROOTFS)
        progress("hashing and publishing")
        stack = publish(name, fresh, stacks_dir, packages)
    progress(f"{name}: {stack.manifest.files} files, {stack.manifest.size_bytes >> 20} MiB")
    return stack
