"""What the driver's blob store serves: a small static app, as droplet and as package, and buildpacks for it."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from static_c import build_static

_SOURCE = Path(__file__).with_name("listener.c")


def build_listener(directory: Path) -> bytes:
    """The static app. Built once a session: see conftest.py."""
    return build_static(_SOURCE, directory / "listener").read_bytes()


@dataclass(frozen=True, slots=True)
class Droplet:
    data: bytes

    @property
    def sha1(self) -> str:
        return hashlib.sha1(self.data, usedforsecurity=False).hexdigest()


def tar_of(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    """A plain tar of regular files. ``files``: path -> content and mode."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, (data, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def make_droplet(listener: bytes, mark: str, *, command: str | None = "./listener") -> Droplet:
    """``mark`` makes the content unique, so that each app has its own layer."""
    info = f"---\ndetected_buildpack: test\nstart_command: {command}\n" if command else "--- {}\n"
    files = {
        "./app/listener": (listener, 0o755),
        "./app/mark": (mark.encode(), 0o644),
        "./logs/staging_task.log": (b"", 0o644),
        "./tmp/.keep": (b"", 0o644),
        "./staging_info.yml": (info.encode(), 0o644),
    }
    return Droplet(gzip.compress(tar_of(files), mtime=0))


def zip_of(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (data, mode) in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (0o100000 | mode) << 16
            archive.writestr(member, data)
    return buffer.getvalue()


def make_package(listener: bytes, mark: str) -> bytes:
    return zip_of({"listener": (listener, 0o755), "mark": (mark.encode(), 0o644)})


def make_buildpack(*, takes: bool, compile_waits_s: float = 0) -> bytes:
    """A buildpack that accepts every app, or none. Its compile writes a file to the cache."""
    scripts = {
        "bin/detect": "echo listener\n" if takes else "echo no >&2\nexit 1\n",
        "bin/compile": f'echo "-----> Compiling"\ndate > "$2/seen"\nsleep {compile_waits_s}\n',
        "bin/release": "printf -- '---\\ndefault_process_types: {web: ./listener}\\n'\n",
    }
    return zip_of({name: (b"#!/bin/bash\n" + text.encode(), 0o755) for name, text in scripts.items()})
