"""Checks whether this host can run containers. Changes nothing. Each result is one line for the user."""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import container


@dataclass(frozen=True, slots=True)
class Finding:
    text: str
    problem: str | None = None
    """What is missing and what to do; None: nothing is missing."""


def check_kernel(release: str) -> Finding:
    version = container.kernel_version(release)
    text = f"kernel {version[0]}.{version[1]}"
    try:
        container.check_kernel(release)
    except container.HostUnfit as e:
        return Finding(text, str(e))
    return Finding(text)


def check_cgroups(mountinfo: str) -> Finding:
    kinds = {line.partition(" - ")[2].split(" ")[0] for line in mountinfo.splitlines()}
    if "cgroup" in kinds:
        return Finding("cgroup v1")
    if "cgroup2" in kinds:
        return Finding("cgroup v2")
    return Finding("no cgroups", "no cgroup file system is mounted: mount cgroup2 on /sys/fs/cgroup")


def check_overlay(filesystems: str) -> Finding:
    if re.search(r"\boverlay\b", filesystems):
        return Finding("overlay on idmapped layers")
    return Finding("no overlay", "the kernel has no overlay file system loaded: modprobe overlay")


def check_firewall() -> Finding:
    if ctypes.util.find_library("nftables") or any(
        Path(folder, "nft").exists() for folder in ("/usr/sbin", "/sbin", "/usr/bin")
    ):
        return Finding("nftables")
    return Finding("no nftables", "libnftables is missing: apt-get install libnftables1 nftables")


def check_root() -> Finding:
    if os.geteuid() != 0:
        return Finding("not root", "containers need root: run `sudo garrison up`")
    return Finding("root")


def findings() -> tuple[Finding, ...]:
    checks: tuple[Callable[[], Finding], ...] = (
        check_root,
        lambda: check_kernel(platform.release()),
        lambda: check_cgroups(Path("/proc/self/mountinfo").read_text()),
        lambda: check_overlay(Path("/proc/filesystems").read_text()),
        check_firewall,
    )
    return tuple(check() for check in checks)
